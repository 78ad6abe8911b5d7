package peers

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// stranger is a member of the group that a test speaks for.
type stranger struct {
	*corosync.Group
	t    *testing.T
	self corosync.Member
}

func (w *world) stranger(node int) *stranger {
	g, err := corosync.Join(w.t.Context(), w.Node(node).NewProcess(), group, corosync.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	self, _ := g.Self()
	w.settle()
	return &stranger{g, w.t, self}
}

// say sends a message; its body is JSON text.
func (s *stranger) say(h header, body string) {
	s.t.Helper()
	if err := s.Send(s.t.Context(), append(appendHeader(nil, h), body...)); err != nil {
		s.t.Fatal(err)
	}
}

// asked waits for a question of somebody's and returns its number.
func (s *stranger) asked(from corosync.Member) uint64 {
	for ev := range s.Events() {
		msg, is := ev.(corosync.Message)
		if !is || msg.From != from {
			continue
		}
		if h, _, err := decodeHeader(msg.Data); err == nil && h.kind == kindQuery {
			return h.query
		}
	}
	s.t.Error("no question came")
	return 0
}

func (s *stranger) close() {
	if err := s.Close(s.t.Context()); err != nil {
		s.t.Error(err)
	}
}

// me is a daemon as a member.
func (d *daemon) me() corosync.Member {
	return corosync.Member{Node: uint32(d.node), PID: d.process.PID()}
}

// page is the body of an answer.
func page(list ...Holding) string {
	var b []byte
	for _, h := range list {
		b = appendHolding(b, h)
	}
	return string(b)
}

// Garbage and messages of other versions change nothing for the others.
func TestGarbage(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		s := w.stranger(2)
		defer s.close()
		if err := s.Send(t.Context(), []byte("GET / HTTP/1.1")); err != nil {
			t.Error(err)
		}
		for _, body := range []string{"", "{", "[]", "nothing", strings.Repeat("[", 60000), `{"holdings":{}}`} {
			for kind := range uint8(8) {
				s.say(header{kind: kind, query: 5, asker: w.nodes[1].me()}, body)
			}
		}
		w.Node(2).Forge(group, corosync.Member{Node: 9, PID: 9}, []byte("nobody"))
		w.settle()
		st := w.nodes[1].Stats()
		if st.Malformed == 0 || st.Unknown == 0 {
			t.Errorf("stats: %+v", st)
		}
		for _, m := range w.nodes[1].Members() {
			if stranger := m.PID == s.self.PID; stranger != (m.Faults > 0) {
				t.Errorf("member: %+v", m)
			}
		}
		// The stranger has said goodbye among other things, and so is not asked.
		list, err := w.nodes[1].ask()
		if err != nil || len(list) != 2 || list[0].Err != nil || list[1].Err != nil {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// A daemon of a later version says more and other things; what is understood is used.
func TestLaterVersion(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		s := w.stranger(1)
		defer s.close()
		b := append(appendHeader(nil, header{kind: kindHello, flags: 0xff00}), `{"name":"later","version":"9","zone":"b"}`...)
		b[4] = 77 // its protocol
		if err := s.Send(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		s.say(header{kind: 200}, `{"anything":1}`)
		w.settle()
		go func() {
			id := s.asked(w.nodes[1].me())
			s.say(header{kind: kindAnswer, query: id, asker: w.nodes[1].me()}, string(entry(field(tagName, "/a"), field(tagMode, "snapshot"), field(77, "new"))))
			s.say(header{kind: kindAnswer, query: id, asker: w.nodes[1].me(), page: 1, flags: flagLast | 0x40}, "")
		}()
		list, err := w.nodes[1].ask()
		if err != nil || len(list) != 2 || list[1].Name != "later" || list[1].Err != nil || len(list[1].Holdings) != 1 ||
			list[1].Holdings[0] != (Holding{Node: 1, Name: "/a", Mode: "snapshot"}) {
			t.Errorf("%+v, %v", list, err)
		}
		for _, m := range w.nodes[1].Members() {
			if m.PID == s.self.PID && (m.Protocol != 77 || m.Version != "9" || m.Faults != 0) {
				t.Errorf("%+v", m)
			}
		}
	})
}

// What a peer answers wrongly is its own entry's error, and nobody else's.
func TestWrongAnswers(t *testing.T) {
	var many [15]Holding
	for i := range many {
		many[i].Name = strings.Repeat("n", 4000)
	}
	huge := page(many[:]...)
	for _, c := range []struct {
		what   string
		answer func(s *stranger, h header)
		want   error
		held   int
	}{
		{"nothing", func(*stranger, header) {}, ErrNoAnswer, 0},
		{"the first page only", func(s *stranger, h header) { s.say(h, page(Holding{OwnerPID: 1})) }, ErrIncomplete, 1},
		{"the second page only", func(s *stranger, h header) { h.page = 1; s.say(h, page(Holding{OwnerPID: 1})) }, ErrIncomplete, 0},
		{"unreadable", func(s *stranger, h header) { h.flags = flagLast; s.say(h, page(Holding{OwnerPID: 1})+"?") }, ErrIncomplete, 1},
		{"cut", func(s *stranger, h header) { h.flags = flagLast | flagCut; s.say(h, "") }, ErrIncomplete, 0},
		{"without end", func(s *stranger, h header) {
			for h.page = range uint32(maxAnswer/len(huge) + 50) {
				s.say(h, huge)
			}
		}, ErrIncomplete, maxAnswer / len(huge) * len(many)},
		{"twice", func(s *stranger, h header) {
			h.flags = flagLast
			s.say(h, page(Holding{OwnerPID: 1}))
			s.say(h, page(Holding{OwnerPID: 2}))
		}, nil, 1},
		{"in another's name", func(s *stranger, h header) {
			h.flags = flagLast
			s.say(h, page(Holding{Node: 2, OwnerPID: 1})) // the node is who sent it
		}, nil, 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			fakeclock.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				defer w.end()
				s := w.stranger(1)
				done := make(chan struct{})
				go func() {
					defer close(done)
					id := s.asked(w.nodes[1].me())
					go func() { // or it would be thrown out as too slow
						for range s.Events() {
						}
					}()
					c.answer(s, header{kind: kindAnswer, query: id, asker: w.nodes[1].me()})
				}()
				list, err := w.nodes[1].ask()
				if err != nil || len(list) != 4 {
					t.Fatalf("%d entries, %v", len(list), err)
				}
				for _, n := range list {
					switch {
					case n.PID != s.self.PID:
						if n.Err != nil || len(n.Holdings) != 2 {
							t.Errorf("node %d: %d, %v", n.Node, len(n.Holdings), n.Err)
						}
					case c.want == nil && n.Err != nil || !errors.Is(n.Err, c.want) || len(n.Holdings) > c.held || c.held < 10 && len(n.Holdings) != c.held:
						t.Errorf("%d holdings, %v; want %d, %v", len(n.Holdings), n.Err, c.held, c.want)
					}
					for _, h := range n.Holdings {
						if h.Node != n.Node {
							t.Errorf("in node %d's entry: %+v", n.Node, h)
						}
					}
				}
				<-done
				s.close()
			})
		})
	}
}

// A peer answers a lookup with other resources than the one that was asked for: they are not shown.
func TestLyingHolders(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		s := w.stranger(2)
		defer s.close()
		go func() {
			id := s.asked(w.nodes[1].me())
			s.say(header{kind: kindAnswer, flags: flagLast, query: id, asker: w.nodes[1].me()}, page(Holding{Resource: "other", OwnerPID: 1}, Holding{Resource: "common", OwnerPID: 2}))
		}()
		list := w.nodes[1].holders(t, "common")
		if len(list) != 3 || list[1].OwnerPID+list[2].OwnerPID != 42+2 {
			t.Errorf("%+v", list)
		}
	})
}

// A peer floods the group with questions, hellos and garbage. It gets little for it, the others get their answers, and
// memory does not grow.
func TestFlood(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		s := w.stranger(2)
		defer s.close()
		go func() { // it reads nothing of sense
			for range s.Events() {
			}
		}()
		const each = 5000
		big := strings.Repeat(" ", 4000) + "{}"
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range each {
			s.say(header{kind: kindQuery, query: uint64(i)}, `{}`)
			s.say(header{kind: kindQuery, query: uint64(i)}, `{"resource":"Y29tbW9u"}`)
			s.say(header{kind: kindHello}, fmt.Sprintf(`{"name":"%d"}`, i))
			s.say(header{kind: kindAnswer, query: uint64(i), asker: w.nodes[1].me()}, big)
			s.say(header{kind: 99}, big)
			if i%100 == 0 {
				fakeclock.Wait()
			}
		}
		w.settle()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if after.HeapAlloc > before.HeapAlloc+16<<20 {
			t.Errorf("the heap grew by %d bytes", after.HeapAlloc-before.HeapAlloc)
		}
		st := w.nodes[1].Stats()
		if st.Answered == 0 || st.Answered > listBurst+lookupBurst+100 || st.Dropped < 2*each {
			t.Errorf("stats: %+v", st)
		}
		began := time.Now()
		if got := w.nodes[1].holders(t, "own 2"); len(got) != 1 {
			t.Errorf("holders: %+v", got)
		}
		if list, err := w.nodes[1].ask(); err != nil || of(list, 1).Err != nil || len(list) != 3 {
			t.Errorf("%+v, %v", list, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// Whatever happened before, when all answer the union is complete; and before that, an entry without an error is.
func TestUnion(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type step struct{ what, node int }
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.IntRange(0, 9).Draw(rt, "what"), rapid.IntRange(1, 4).Draw(rt, "node")}
		}), 1, 25).Draw(rt, "steps")
		fakeclock.Test(t, func(t *testing.T) {
			const nodes = 4
			w := newWorld(t, nodes)
			defer w.end()
			check := func(from int, list []NodeHoldings) {
				for _, n := range list {
					if n.Node == 0 {
						continue // this node itself, never connected since it was started
					}
					d := w.nodes[n.Node]
					if n.Err == nil && fmt.Sprint(n.Holdings) != fmt.Sprint(d.holdings()) {
						t.Errorf("node %d got of node %d without an error %+v; it holds %+v", from, n.Node, n.Holdings, d.holdings())
					}
				}
			}
			for i, s := range steps {
				d := w.nodes[s.node]
				switch s.what {
				case 0:
					d.set(append(d.holdings(), d.holding(fmt.Sprintf("step %d", i), "exclusive")))
				case 1:
					w.Node(s.node).StopCorosync()
				case 2:
					w.Node(s.node).StartCorosync()
				case 3:
					w.Node(s.node).Suspend()
				case 4:
					w.Node(s.node).Resume()
				case 5:
					d.process.Freeze()
				case 6:
					d.process.Thaw()
				case 7:
					w.Partition([]int{s.node})
				case 8:
					w.Heal()
				case 9: // the daemon is killed, and started again
					d.process.Kill()
					d.cancel()
					<-d.done
					held := d.held
					w.nodes[s.node] = w.start(s.node)
					w.nodes[s.node].set(held)
				}
				list, _ := w.nodes[1+i%nodes].ask()
				check(1+i%nodes, list)
			}
			w.Heal()
			for i := 1; i <= nodes; i++ {
				w.Node(i).StartCorosync()
				w.Node(i).Resume()
				w.nodes[i].process.Thaw()
			}
			time.Sleep(time.Minute)
			w.settle()
			for i := 1; i <= nodes; i++ {
				complete(t, w.nodes[i], 1, 2, 3, 4)
			}
		})
	})
}

// BenchmarkEncodeAnswer is the cost of an answer with 10,000 locks.
func BenchmarkEncodeAnswer(b *testing.B) {
	d := &daemon{node: 1}
	var list []Holding
	for i := range 10_000 {
		list = append(list, d.holding(fmt.Sprintf("disk %d", i), "exclusive"))
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := pages(list, func([]byte, uint16) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeAnswer is the cost of a page from a peer.
func BenchmarkDecodeAnswer(b *testing.B) {
	d := &daemon{node: 1}
	var list []Holding
	for i := range 100 {
		list = append(list, d.holding(fmt.Sprintf("disk %d", i), "exclusive"))
	}
	var page []byte
	if err := pages(list, func(body []byte, _ uint16) error { page = bytes.Clone(body); return nil }); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		if got, err := decodeAnswer(1, page); err != nil || len(got) != len(list) {
			b.Fatal(len(got), err)
		}
	}
}
