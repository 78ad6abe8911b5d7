package daemon

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/logs"
)

// documented is what docs/events.md says of an event.
type documented struct {
	ID, Level string
	Fields    []string // sorted, without VMLOCKD_
}

var (
	section = regexp.MustCompile("(?m)^### ([a-z-]+)\n\n`([0-9a-f]{32})`, (debug|info|warning|err)\\. [^\n]+\n\n\\* Fields: ([^\n]+)\\.\n\\* Do: [^\n]+\\.\n")
	heading = regexp.MustCompile(`(?m)^### `)
	groups  = map[string][]string{"lock": {"LOCKSPACE", "NAME", "MODE"}, "owner": {"OWNER", "UUID", "PID"}, "none": nil}
)

func readDoc(t *testing.T) map[string]documented {
	t.Helper()
	text, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := map[string]documented{}
	for _, m := range section.FindAllStringSubmatch(string(text), -1) {
		d := documented{ID: m[2], Level: m[3]}
		for f := range strings.SplitSeq(m[4], ", ") {
			if list, ok := groups[f]; ok {
				d.Fields = append(d.Fields, list...)
				continue
			}
			name, ok := strings.CutPrefix(strings.Trim(f, "`"), "VMLOCKD_")
			if !ok {
				t.Errorf("%s: %q is no field", m[1], f)
			}
			d.Fields = append(d.Fields, name)
		}
		slices.Sort(d.Fields)
		doc[m[1]] = d
	}
	if n := len(heading.FindAll(text, -1)); n != len(doc) {
		t.Errorf("docs/events.md has %d sections, of which %d can be read", n, len(doc))
	}
	return doc
}

func TestCatalogueListsTheTable(t *testing.T) {
	want, got := map[string]string{}, map[string]string{}
	for _, e := range logs.Events {
		want[e.Name] = e.ID
	}
	for name, d := range readDoc(t) {
		got[name] = d.ID
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/events.md and logs.Events differ:\n%s", d)
	}
}

// samples has an event of every kind with all that it can have.
func samples() map[string]locking.Event {
	ref := locking.Ref{Lockspace: "/leases", Name: "a"}
	vm := locking.Owner{PID: 7, Name: "web"}
	err, took, held := errors.New("input/output error"), time.Millisecond, time.Hour
	out := &locking.Error{Kind: locking.KindUnavailable, Op: "acquire", Ref: ref, Err: context.DeadlineExceeded}
	return map[string]locking.Event{
		"lock-granted":         {Kind: locking.Granted, Ref: ref, Owner: vm, Took: took},
		"lock-refused":         {Kind: locking.Refused, Ref: ref, Owner: vm, Err: out, Took: took},
		"lock-released":        {Kind: locking.Released, Ref: ref, Owner: vm, Err: err, Held: held, Took: took},
		"lock-released-gone":   {Kind: locking.ReleasedGone, Ref: ref, Owner: vm, Err: err, Held: held, Took: took},
		"lock-forced":          {Kind: locking.Forced, Ref: ref, Owner: vm, Err: err, Held: held, Took: took},
		"lock-release-failed":  {Kind: locking.ReleaseFailed, Ref: ref, Owner: vm, Err: err, Held: held, Took: took},
		"lock-released-untold": {Kind: locking.ReleasedUntold, Ref: ref, Owner: vm, Err: err},
		"lock-taken-back":      {Kind: locking.TakenBack, Ref: ref, Owner: vm, Held: held},
		"lock-lost":            {Kind: locking.Lost, Ref: ref, Owner: vm, Err: err, Held: held},
		"lock-taken-again":     {Kind: locking.TakenAgain, Ref: ref, Owner: vm, Took: took},
		"lock-not-taken-again": {Kind: locking.NotTakenAgain, Ref: ref, Owner: vm, Err: out},
		"owner-gone":           {Kind: locking.OwnerGone, Owner: vm, Locks: 2},
		"owner-ending":         {Kind: locking.OwnerEnding, Owner: vm},
		"owner-end-failed":     {Kind: locking.OwnerEndFailed, Owner: vm, Err: err},
		"owner-unverified":     {Kind: locking.OwnerUnverified, Owner: vm, Err: err},
	}
}

// record keeps what is logged last.
type record struct {
	slog.Handler
	event, level string
	fields       []string
}

func (r *record) Enabled(context.Context, slog.Level) bool { return true }

func (r *record) Handle(_ context.Context, rec slog.Record) error {
	r.event, r.fields = "", nil
	r.level = levelName(rec.Level.String())
	rec.Attrs(func(a slog.Attr) bool {
		if a.Key == logs.EventKey {
			r.event = a.Value.String()
		} else {
			r.fields = append(r.fields, strings.ToUpper(a.Key))
		}
		return true
	})
	slices.Sort(r.fields)
	return nil
}

// levelName is the name of a syslog priority for a level of slog.
func levelName(level string) string {
	return map[string]string{"DEBUG": "debug", "INFO": "info", "WARN": "warning", "ERROR": "err"}[strings.ToUpper(level)]
}

func TestCatalogueOfLocks(t *testing.T) {
	doc, handler := readDoc(t), &record{}
	observe := logEvents(slog.New(handler))
	kinds := map[locking.EventKind]bool{}
	for name, e := range samples() {
		observe(e)
		kinds[e.Kind] = true
		if handler.event != name {
			t.Errorf("%d is event %q, want %q", e.Kind, handler.event, name)
		}
		want := doc[name]
		if d := cmp.Diff(documented{want.ID, handler.level, handler.fields}, want); d != "" {
			t.Errorf("%s: logged (-) and documented (+) differ:\n%s", name, d)
		}
	}
	for k := locking.EventKind(0); ; k++ {
		if _, event, _ := describe(k); event == "" {
			if len(kinds) != int(k) {
				t.Errorf("%d kinds have an event, and %d are tested", k, len(kinds))
			}
			break
		}
	}
}

// TestManyTakenBack: a restart shows whose locks were taken back, but not
// thousands of them.
func TestManyTakenBack(t *testing.T) {
	lines := 0
	observe := logEvents(slog.New(slog.NewTextHandler(writer(func(text []byte) (int, error) {
		lines++
		if !strings.Contains(string(text), "event=lock-taken-back") || !strings.Contains(string(text), "owner=web") {
			t.Errorf("logged %s", text)
		}
		return len(text), nil
	}), nil)))
	for range 10 * maxTakenBackLogged {
		observe(samples()["lock-taken-back"])
	}
	if lines != maxTakenBackLogged {
		t.Errorf("%d lines at info", lines)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestCatalogueOfTheRest finds every other record with an event in the source,
// and compares it with the catalogue.
func TestCatalogueOfTheRest(t *testing.T) {
	doc, known := readDoc(t), samples()
	found := map[string]documented{}
	for _, c := range logCalls(t) {
		event, fields, err := c.read()
		if err != nil {
			t.Errorf("%s: %v", c.at, err)
			continue
		}
		if event == "" {
			continue
		}
		d := found[event]
		if d.Level != "" && d.Level != c.level {
			t.Errorf("%s: %s is logged as %s, and elsewhere as %s", c.at, event, c.level, d.Level)
		}
		for _, f := range fields {
			if !slices.Contains(d.Fields, f) {
				d.Fields = append(d.Fields, f)
			}
		}
		slices.Sort(d.Fields)
		found[event] = documented{doc[event].ID, c.level, d.Fields}
	}
	for name := range known {
		delete(doc, name)
	}
	if d := cmp.Diff(found, doc); d != "" {
		t.Errorf("logged (-) and documented (+) differ:\n%s", d)
	}
}

// logCall is a call like log.Warn("text", "key", value).
type logCall struct {
	at, level string
	args      []ast.Expr
}

func (c logCall) read() (event string, fields []string, err error) {
	for i := 0; i < len(c.args); i += 2 {
		lit, ok := c.args[i].(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return "", nil, fmt.Errorf("argument %d is no literal key", i)
		}
		key, _ := strconv.Unquote(lit.Value)
		if key != logs.EventKey {
			fields = append(fields, strings.ToUpper(key))
			continue
		}
		if i+1 < len(c.args) {
			lit, ok = c.args[i+1].(*ast.BasicLit)
		}
		if !ok {
			return "", nil, errors.New("the event is no literal")
		}
		event, _ = strconv.Unquote(lit.Value)
	}
	return event, fields, nil
}

func logCalls(t *testing.T) (list []logCall) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || levelName(f.Sel.Name) == "" {
				return true
			}
			on, _ := f.X.(*ast.Ident)
			field, _ := f.X.(*ast.SelectorExpr)
			if on != nil && on.Name == "log" || field != nil && field.Sel.Name == "log" {
				list = append(list, logCall{set.Position(call.Pos()).String(), levelName(f.Sel.Name), call.Args[1:]})
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 30 {
		t.Fatalf("only %d records were found in the source", len(list))
	}
	return list
}
