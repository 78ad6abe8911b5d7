package dlm_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// step is one thing a process of a random history does.
type step struct {
	Pause time.Duration // before it
	Limit time.Duration // until its context ends
	What  string        // "lock", "convert", "unlock"
	Name  string
	Mode  dlm.Mode
	Which int // of the locks it has
	Opts  dlm.LockOptions
}

// disturbance is one thing that happens to all.
type disturbance struct {
	At, For time.Duration
	Kill    int // process, or -1: the lockspace is stopped for a while
}

func genStep(t *rapid.T, names []string) step {
	ms := func(name string, most int) time.Duration {
		return time.Duration(rapid.IntRange(0, most).Draw(t, name)) * time.Millisecond
	}
	return step{
		Pause: ms("pause", 20), Limit: ms("limit", 60),
		What:  rapid.SampledFrom([]string{"lock", "lock", "convert", "unlock"}).Draw(t, "what"),
		Name:  rapid.SampledFrom(names).Draw(t, "name"),
		Mode:  dlm.Mode(rapid.IntRange(int(dlm.NL), int(dlm.EX)).Draw(t, "mode")),
		Which: rapid.IntRange(0, 3).Draw(t, "which"),
		Opts: dlm.LockOptions{
			NoQueue: rapid.Bool().Draw(t, "noqueue"), Persistent: rapid.Bool().Draw(t, "persistent"),
			LVB: rapid.Bool().Draw(t, "lvb"), Notify: rapid.Bool().Draw(t, "notify"),
		},
	}
}

// model is who has what as far as was told. It is all there is to know: any two entries of a resource are compatible,
// always. A dead process's persistent locks stay; what it was doing when it died may have happened or not.
type model struct {
	mu    sync.Mutex // guards what follows
	has   map[string]map[*actor][]entry
	wrong error
}

type entry struct {
	l          *dlm.Lock
	mode       dlm.Mode
	persistent bool
	unsure     bool // a conversion or release is under way
}

func (m *model) change(a *actor, name string, f func([]entry) []entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.dead {
		return
	}
	if m.has[name] == nil {
		m.has[name] = map[*actor][]entry{}
	}
	m.has[name][a] = f(m.has[name][a])
	var all []entry
	for _, es := range m.has[name] {
		all = append(all, es...)
	}
	for i, x := range all {
		for _, y := range all[:i] {
			if !x.mode.Compatible(y.mode) && m.wrong == nil {
				m.wrong = fmt.Errorf("%q is had in %v and %v", name, x.mode, y.mode)
			}
		}
	}
}

func (m *model) set(a *actor, l *dlm.Lock, e entry) {
	m.change(a, l.Name(), func(es []entry) []entry {
		e.l = l
		if i := slices.IndexFunc(es, func(o entry) bool { return o.l == l }); i >= 0 {
			es[i] = e
			return es
		}
		return append(es, e)
	})
}

func (m *model) drop(a *actor, l *dlm.Lock) {
	m.change(a, l.Name(), func(es []entry) []entry {
		return slices.DeleteFunc(es, func(o entry) bool { return o.l == l })
	})
}

// die is the end of a process: what is not persistent is free when the kernel has seen to it, so it is free now.
func (m *model) die(a *actor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a.dead = true
	for name := range m.has {
		m.has[name][a] = slices.DeleteFunc(m.has[name][a], func(e entry) bool { return !e.persistent })
	}
}

type actor struct {
	m     *model
	p     *dlmtest.Process
	ls    *dlm.Lockspace
	steps []step
	locks []*dlm.Lock
	dead  bool // guarded by m.mu
}

func (a *actor) run(t *testing.T) {
	for _, s := range a.steps {
		<-time.After(s.Pause)
		ctx, cancel := context.WithTimeout(t.Context(), s.Limit)
		err := a.do(ctx, s)
		cancel()
		if errors.Is(err, dlm.ErrBroken) || errors.Is(err, dlm.ErrClosed) {
			return // killed
		}
		if err != nil && !errors.Is(err, dlm.ErrBusy) && !errors.Is(err, dlm.ErrDeadlock) && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
}

// floor is what a lock has in any case while it may have one mode or the other. CW and PR are neither more nor less.
func floor(x, y dlm.Mode) dlm.Mode {
	if min(x, y) == dlm.CW && max(x, y) == dlm.PR {
		return dlm.CR
	}
	return min(x, y)
}

func (a *actor) do(ctx context.Context, s step) error {
	if s.What == "lock" {
		l, err := a.ls.Lock(ctx, s.Name, s.Mode, s.Opts)
		if err != nil {
			return err
		}
		a.locks = append(a.locks, l)
		a.m.set(a, l, entry{mode: s.Mode, persistent: s.Opts.Persistent})
		return nil
	}
	if len(a.locks) == 0 {
		return nil
	}
	i := s.Which % len(a.locks)
	l := a.locks[i]
	if s.What == "unlock" {
		a.locks = slices.Delete(a.locks, i, i+1)
		a.m.drop(a, l)
		return l.Unlock(ctx)
	}
	// What is given away is so from the call on; what is gained is so from the return on.
	before, err := l.Settle(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	a.m.set(a, l, entry{mode: floor(before, s.Mode), persistent: l.Persistent(), unsure: true})
	err = l.Convert(ctx, s.Mode, dlm.ConvertOptions{NoQueue: s.Opts.NoQueue})
	mode, serr := l.Settle(context.WithoutCancel(ctx))
	if serr != nil {
		return serr
	}
	a.m.set(a, l, entry{mode: mode, persistent: l.Persistent()})
	return err
}

// In no history do two have what excludes each other, and at the end nothing is left but what somebody has, dead or alive.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const processes = 4
		names := []string{"a", "b"}
		var steps [processes][]step
		for i := range steps {
			steps[i] = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step { return genStep(t, names) }), 0, 10).Draw(rt, fmt.Sprint("process", i))
		}
		bad := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) disturbance {
			return disturbance{
				At:   time.Duration(rapid.IntRange(0, 200).Draw(t, "at")) * time.Millisecond,
				For:  time.Duration(rapid.IntRange(0, 100).Draw(t, "for")) * time.Millisecond,
				Kill: rapid.IntRange(-1, processes-1).Draw(t, "kill"),
			}
		}), 0, 3).Draw(rt, "bad")
		var wrong error
		fakeclock.Test(t, func(t *testing.T) { wrong = history(t, names, steps[:], bad) })
		if wrong != nil || t.Failed() {
			rt.Fatal(wrong)
		}
	})
}

func history(t *testing.T, names []string, steps [][]step, bad []disturbance) error {
	c := dlmtest.NewCluster(2)
	m := &model{has: map[string]map[*actor][]entry{}}
	var actors []*actor
	for i := range steps {
		a := &actor{m: m, p: c.Node(i%2 + 1).NewProcess(), steps: steps[i]}
		ls, err := dlm.Create(t.Context(), a.p, space, dlm.Options{InFlight: 2})
		must(t, err)
		a.ls = ls
		actors = append(actors, a)
	}
	var wg sync.WaitGroup
	for _, a := range actors {
		wg.Go(func() { a.run(t) })
	}
	for _, d := range bad {
		wg.Go(func() {
			<-time.After(d.At)
			if d.Kill < 0 {
				c.Suspend(space)
				<-time.After(d.For)
				c.Resume(space)
				return
			}
			a := actors[d.Kill]
			// Tell the model first: what the process would be told from now on, it is told no more.
			m.die(a)
			a.p.Kill()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_ = a.ls.Close(ctx)
		})
	}
	wg.Wait()
	c.Resume(space)
	for _, a := range actors {
		for _, l := range a.locks {
			m.mu.Lock()
			dead := a.dead
			m.mu.Unlock()
			if !dead {
				m.drop(a, l)
				must(t, l.Unlock(t.Context()))
			}
		}
		fakeclock.Wait()
		if s := a.ls.Stats(); s.Unsettled != 0 || s.InFlight != 0 || s.Queued != 0 {
			return fmt.Errorf("unsettled: %+v", s)
		}
		if err := a.ls.Close(t.Context()); err != nil && !errors.Is(err, dlm.ErrUnsettled) {
			return err
		}
	}
	return errors.Join(m.wrong, leftovers(t, c, m, names))
}

// leftovers adopts what the dead have left, and requires that all they had is among it.
func leftovers(t *testing.T, c *dlmtest.Cluster, m *model, names []string) error {
	for i := range 2 {
		ls, err := dlm.Create(t.Context(), c.Node(i+1).NewProcess(), space, dlm.Options{})
		must(t, err)
		for _, name := range names {
			for a, es := range m.has[name] {
				for _, e := range es {
					if a.p.Node() != c.Node(i+1) {
						continue
					}
					l, err := ls.Adopt(t.Context(), name, e.mode, dlm.LockOptions{})
					if err == nil {
						must(t, l.Unlock(t.Context()))
					} else if !e.unsure {
						return fmt.Errorf("the dead had %q in %v: %w", name, e.mode, err)
					}
				}
			}
		}
		must(t, ls.Purge(t.Context(), 0))
		must(t, ls.Close(t.Context()))
	}
	for i := range 2 {
		if n := c.Node(i + 1).Panics(); n != 0 {
			return fmt.Errorf("the kernel of node %d has crashed", i+1)
		}
	}
	for _, name := range names {
		if locks := c.Locks(space, name); locks != nil {
			return fmt.Errorf("%q still has %+v", name, locks)
		}
	}
	return nil
}
