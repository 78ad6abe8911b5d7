package control

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func event(kind locking.EventKind, name string) locking.Event {
	return locking.Event{Kind: kind, Ref: locking.Ref{Name: name}, Took: time.Second}
}

func TestEventsAreBounded(t *testing.T) {
	var es Events
	const many = 3 * maxEvents
	for range many {
		es.Observe(event(locking.Granted, "/a"))
	}
	list, missed := es.After(0, many)
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

// TestKinds: every kind that package locking has has a name of its own.
func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for k := range locking.Forced + 1 {
		name := kindOf(k)
		if name == "" || name == "unknown" || seen[name] {
			t.Errorf("kind %d is called %q", k, name)
		}
		seen[name] = true
	}
	if kindOf(locking.Forced+1) != "unknown" {
		t.Error("there is a kind that this test does not know")
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
