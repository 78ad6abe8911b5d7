package control

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func event(kind locking.EventKind, name string) locking.Event {
	return locking.Event{Kind: kind, Ref: locking.Ref{Name: name}, Time: time.Unix(1700000000, 0), Took: time.Second}
}

func TestEventsAreBounded(t *testing.T) {
	var es Events
	const many = 3 * maxEvents
	for range many {
		es.Observe(event(locking.Granted, "/a"))
	}
	list, missed := es.After(0, many)
	if want := event(locking.Granted, "").Time; !list[0].Time.Equal(want) {
		t.Errorf("it happened at %v, and is noted as of %v", want, list[0].Time)
	}
	if len(list) != maxEvents || missed != many-maxEvents || list[0].Seq != missed+1 || list[len(list)-1].Seq != many {
		t.Errorf("%d events, %d missed", len(list), missed)
	}
	// Long names take their share.
	long := strings.Repeat("x", 65536)
	for range many {
		es.Observe(event(locking.Refused, long))
	}
	if n := es.all.n; n != maxBytes/len(long) || es.all.bytes > maxBytes || es.refusals.bytes > maxBytes {
		t.Errorf("%d long events are kept, %d bytes", n, es.all.bytes)
	}
	// Refusals outlast what happens more often.
	es.Observe(locking.Event{Kind: locking.Refused, Ref: locking.Ref{Name: "/b"}, Err: errors.New("busy")})
	for range many {
		es.Observe(event(locking.Released, "/a"))
	}
	refusals := es.Refusals()
	if last := refusals[len(refusals)-1]; last.Resource != "/b" || last.Reason != "busy" || last.Kind != "refused" {
		t.Errorf("the last refusal is %+v", last)
	}
	if c := es.Counts(); c["granted"] != many || c["refused"] != many+1 || c["released"] != many || c["forced"] != 0 {
		t.Errorf("counts %v", c)
	}
	if list, missed := es.After(es.Last(), 10); list != nil || missed != 0 {
		t.Errorf("after the last one: %v, %d", list, missed)
	}
}

// TestKinds: every kind that package locking declares has a name of its own.
func TestKinds(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../locking/types.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, d := range file.Decls {
		block, ok := d.(*ast.GenDecl)
		if !ok || block.Tok != token.CONST {
			continue
		}
		first := block.Specs[0].(*ast.ValueSpec)
		if of, ok := first.Type.(*ast.Ident); !ok || of.Name != "EventKind" {
			continue
		}
		for _, s := range block.Specs {
			declared = append(declared, s.(*ast.ValueSpec).Names[0].Name)
		}
	}
	if len(declared) < 13 {
		t.Fatalf("found only %v in package locking", declared)
	}
	seen := map[string]bool{}
	for k, name := range declared {
		text := kindOf(locking.EventKind(k))
		if text == "" || text == "unknown" || seen[text] {
			t.Errorf("%s is called %q", name, text)
		}
		seen[text] = true
	}
	if len(kinds) != len(declared) || kindOf(locking.EventKind(len(declared))) != "unknown" {
		t.Errorf("there are %d names for %d kinds", len(kinds), len(declared))
	}
}

func BenchmarkObserve(b *testing.B) {
	var es Events
	e := event(locking.Granted, "/srv/vm/web.img")
	b.ReportAllocs()
	for b.Loop() {
		es.Observe(e)
	}
}
