package guard

import (
	"errors"
	"strings"
	"testing"
	"time"
)

type fullDisk struct{ Store }

func (fullDisk) Save(Saved) error { return errors.New("no space left on device") }

// What the guard cannot be trusted with grants nothing, says what to do, and promises nothing to the others.
func TestUnsafe(t *testing.T) {
	for name, c := range map[string]struct {
		spoil, mend func(g *Guard, w *world)
		want        string
	}{
		"mode fencing, and nobody fences": {
			func(g *Guard, _ *world) { g.o.Mode = Fencing },
			func(g *Guard, _ *world) { g.o.Mode = Auto },
			"set enable_fencing=1 in dlm.conf",
		},
		"corosync's timeouts have become longer": {
			func(g *Guard, w *world) {
				longer := g.totem
				longer.Token = w.timing.HoldOff
				g.lockedTotem(longer)
			},
			func(g *Guard, w *world) {
				was := g.totem
				was.Token = w.timing.Token
				g.lockedTotem(was)
			},
			"set guard.hold_off to at least that on all hosts",
		},
		"nothing can be noted": {
			func(g *Guard, _ *world) { g.o.Store = fullDisk{g.o.Store} },
			func(g *Guard, _ *world) { g.o.Store = g.o.Store.(fullDisk).Store },
			"no space left on device",
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, none, func(b *bench) {
				g := b.nodes[0].guard
				promised := func() bool {
					other := b.nodes[1].guard
					other.mu.Lock()
					defer other.mu.Unlock()
					return other.ledger.words[1].Promise
				}
				do := func(f func(*Guard, *world)) {
					g.mu.Lock()
					f(g, b.world)
					g.mu.Unlock()
					b.settle(b.ctx, 2*time.Second)
				}
				if err := g.Admit(b.ctx); err != nil || !promised() {
					b.t.Fatalf("before: %v, promised: %v", err, promised())
				}
				do(c.spoil)
				var r *Refusal
				if err := g.Admit(b.ctx); !errors.As(err, &r) || r.Cause() != "guard_unsafe" || !strings.Contains(err.Error(), c.want) {
					b.t.Errorf("it admits, or does not say what to do: %v", err)
				}
				if st := g.Status(); st.Unsafe == "" || st.Promise || promised() {
					b.t.Errorf("unsafe %q, promise %v, of which the others know %v", st.Unsafe, st.Promise, promised())
				}
				b.is("what has locks", true, false)
				do(c.mend)
				if err := g.Admit(b.ctx); err != nil || !promised() {
					b.t.Errorf("mended: %v, promised: %v", err, promised())
				}
			})
		})
	}
}
