// Package archtest checks that dependencies between packages point one way, as
// the table in table_test.go says.
package archtest

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/vmlockd/vmlockd"

// file is a Go file and what it imports.
type file struct {
	dir, name string // dir is relative to the module, with slashes
	imports   []string
}

func TestImports(t *testing.T) {
	files := parseModule(t)
	if len(files) < 50 {
		t.Fatalf("only %d files were found: is this the module?", len(files))
	}
	for _, complaint := range complaints(files) {
		t.Error(complaint)
	}
}

func parseModule(t *testing.T) []file {
	t.Helper()
	root := "../.."
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	var files []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(p, rel, d)
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		// Build constraints are not looked at: what holds for one system holds for
		// all.
		parsed, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		f := file{dir: filepath.ToSlash(filepath.Dir(rel)), name: d.Name()}
		for _, i := range parsed.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, name)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// skip leaves out what the go command leaves out.
func skip(p, rel string, d fs.DirEntry) error {
	if rel == "." {
		return nil
	}
	if d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

// complaints says what in files is against the table, and how to go on.
func complaints(files []file) (list []string) {
	homeless := map[string]bool{}
	for _, f := range files {
		r := roomOf(f.dir)
		if r == nil {
			if !homeless[f.dir] {
				homeless[f.dir] = true
				list = append(list, fmt.Sprintf("package %s is in no row of the table in internal/archtest/table_test.go: "+
					"add a row above all that it imports and below all that may import it", f.dir))
			}
			continue
		}
		for _, i := range f.imports {
			if why := r.refuses(f, i); why != "" {
				list = append(list, fmt.Sprintf("%s/%s imports %s: %s", f.dir, f.name, i, why))
			}
		}
	}
	return list
}

func roomOf(dir string) *room {
	var best *room
	for i := range rooms {
		r := &rooms[i]
		if covers(r.place, dir) && (best == nil || len(r.place) > len(best.place) || r.place == dir) {
			best = r
		}
		if r.place == dir {
			break
		}
	}
	return best
}

// covers says whether dir is place, or below it if place ends with /... .
func covers(place, dir string) bool {
	top, below := strings.CutSuffix(place, "/...")
	return dir == top || below && strings.HasPrefix(dir, top+"/")
}

// refuses returns why a file of this room must not import something, or "".
func (r *room) refuses(f file, name string) string {
	isTest := strings.HasSuffix(f.name, "_test.go")
	ours, isOurs := strings.CutPrefix(name, module+"/")
	switch {
	case name == "C":
		return "this project has no cgo, so that the daemon runs without anything else installed"
	case name == "testing/synctest" && f.dir != fakeclock:
		return "its timers and the race detector do not get on; use " + fakeclock
	case isOurs:
		if isTest || r.anything || ours == f.dir || slices.ContainsFunc(r.ours, func(p string) bool { return covers(p, ours) }) {
			return ""
		}
		return fmt.Sprintf("%s may import %s of ours; ask for what is needed through a small interface declared where it is used, "+
			"or let internal/daemon put the two together", f.dir, orNothing(r.ours))
	case !strings.Contains(strings.Split(name, "/")[0], "."):
		// The standard library.
		if r.pure && !isTest && slices.ContainsFunc(outside, func(p string) bool { return covers(p, name) }) {
			return "the rules are pure: what only the system knows comes through a small interface declared here"
		}
		return ""
	}
	allowed := slices.Clone(r.theirs)
	if isTest || r.forTests || r.anything {
		allowed = append(allowed, testLibraries...)
	}
	if slices.ContainsFunc(allowed, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") }) {
		return ""
	}
	if name == prometheus || strings.HasPrefix(name, prometheus+"/") {
		return "only internal/metrics may; give it a number through an interface or an event"
	}
	return fmt.Sprintf("%s may import %s of others; a new dependency is worth a discussion, then a place in its row of the table",
		f.dir, orNothing(r.theirs))
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// A row names only places in rows below it: so the table has no circle, and
// whoever reads it from the top meets users before what they use.
func TestTablePointsOneWay(t *testing.T) {
	row := map[string]int{}
	for i, r := range rooms {
		if _, twice := row[r.place]; twice {
			t.Errorf("%s has two rows", r.place)
		}
		row[r.place] = i
		if path.Clean(r.place) != r.place {
			t.Errorf("%s is not a clean path", r.place)
		}
	}
	for i, r := range rooms {
		for _, ours := range r.ours {
			found := false
			for j, below := range rooms {
				if !covers(below.place, strings.TrimSuffix(ours, "/...")) && !covers(ours, below.place) {
					continue
				}
				found = true
				if j < i {
					t.Errorf("%s may import %s, whose row is above it", r.place, below.place)
				}
			}
			if !found {
				t.Errorf("%s may import %s, which has no row", r.place, ours)
			}
		}
		if slices.Contains(r.theirs, prometheus) && r.place != "internal/metrics" {
			t.Errorf("%s may import Prometheus; only internal/metrics should", r.place)
		}
	}
	if r := roomOf("internal/locking"); !r.pure || !slices.Equal(r.ours, []string{"internal/table"}) || len(r.theirs) > 0 || r.anything || r.forTests {
		t.Error("internal/locking, the rules, may import more than the standard library and a table")
	}
	if r := roomOf("internal/table"); !r.pure || len(r.ours)+len(r.theirs) > 0 || r.anything || r.forTests {
		t.Error("internal/table may import more than the standard library")
	}
}

// What the test is for has to be found by it.
func TestComplaints(t *testing.T) {
	ours := module + "/"
	for _, row := range []struct {
		dir, name, imports string
		want               string // "" if it is allowed
	}{
		{"internal/locking", "manager.go", "context", ""},
		{"internal/locking", "manager.go", xsys + "/unix", "may import nothing of others"},
		{"internal/locking", "manager.go", ours + "internal/rpc", "may import internal/table of ours"},
		{"internal/locking", "manager.go", "os", "the rules are pure"},
		{"internal/locking", "manager.go", "os/exec", "the rules are pure"},
		{"internal/locking", "manager.go", "net", "the rules are pure"},
		{"internal/locking", "manager.go", "net/netip", "the rules are pure"},
		{"internal/locking", "manager.go", "syscall", "the rules are pure"},
		{"internal/locking", "manager.go", "unsafe", "the rules are pure"},
		{"internal/locking", "manager_test.go", "os", ""},
		{"internal/locking/locktest", "fake.go", "os", ""},
		{"internal/rpc", "server.go", "net", ""},
		{"internal/locking", "manager_test.go", ours + "internal/locking/locktest", ""},
		{"internal/locking", "manager_test.go", "pgregory.net/rapid", ""},
		{"internal/locking", "manager.go", "pgregory.net/rapid", "may import nothing of others"},
		{"internal/locking", "manager.go", ours + "internal/locking/locktest", "may import internal/table of ours"},
		{"internal/locking/locktest", "fake.go", ours + "internal/locking", ""},
		{"internal/locking/locktest", "fake.go", "go.uber.org/goleak", ""},
		{"internal/locking/locktest", "fake.go", ours + "internal/owner", "may import internal/locking of ours"},
		{"internal/rpc", "server.go", ours + "internal/locking", "may import internal/stack of ours"},
		{"internal/table", "table.go", ours + "internal/locking", "may import nothing of ours"},
		{"internal/lockprogram", "program.go", ours + "internal/rpc", ""},
		{"internal/lockprogram", "program.go", ours + "internal/backend/local", "may import internal/rpc, internal/locking of ours"},
		{"internal/backend/local", "local.go", ours + "dlm", "internal/stack of ours"},
		{"dlm", "lock.go", xsys + "/unix", ""},
		{"dlm", "lock.go", ours + "internal/locking", "may import dlm/internal/abi, internal/table of ours"},
		{"dlm/dlmtest/remote", "remote.go", ours + "dlm/dlmtest", ""},
		{"dlm/dlmtest/remote", "remote.go", ours + "internal/locking", "of ours"},
		{"cmd/vmlockd", "main.go", ours + "internal/daemon", ""},
		{"cmd/vmlockd", "main.go", ours + "internal/locking", "of ours"},
		{"cmd/vmlockctl", "main.go", ours + "internal/daemon", "may import internal/cli of ours"},
		{"internal/metrics", "metrics.go", prometheus + "/prometheus", ""},
		{"internal/daemon", "daemon.go", prometheus + "/prometheus", "only internal/metrics may"},
		{"internal/daemon", "daemon_test.go", prometheus + "/prometheus", "only internal/metrics may"},
		{"dlm", "lock.go", "C", "no cgo"},
		{"tests/stress", "stress.go", ours + "internal/rpc", ""},
		{"tests/stress", "stress.go", "github.com/anishathalye/porcupine", ""},
		{"tests/stress", "stress.go", "example.org/new", "a new dependency"},
		{"internal/locking", "a_test.go", "testing/synctest", "use internal/fakeclock"},
		{"internal/fakeclock", "a.go", "testing/synctest", ""},
		{"internal/unheard", "of.go", "fmt", "add a row"},
		{"lab/internal/unheard", "of.go", "fmt", "add a row"},
	} {
		got := complaints([]file{{dir: row.dir, name: row.name, imports: []string{row.imports}}})
		switch {
		case row.want == "" && len(got) > 0:
			t.Errorf("allowed, and it complains: %q", got)
		case row.want != "" && (len(got) != 1 || !strings.Contains(got[0], row.want)):
			t.Errorf("%s/%s imports %s: got %q, want a complaint with %q", row.dir, row.name, row.imports, got, row.want)
		}
	}
}
