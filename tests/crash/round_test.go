package crash_test

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/lab"
)

// told is what clients know of one name.
type told struct {
	owners map[*vm]int // who was told of a grant and not of a release, and how often
	shared bool
	doubt  bool // a request about it was not answered
}

// step is one request of the workload.
type step struct {
	vm      int
	name    int
	release bool
	shared  bool
}

// workload has what libvirt does: exclusive and shared locks, several owners of
// one, releases, refusals.
var workload = []step{
	{vm: 0, name: 0}, {vm: 0, name: 1, shared: true}, {vm: 1, name: 1, shared: true}, {vm: 1, name: 0},
	{vm: 0, name: 0, release: true}, {vm: 1, name: 0}, {vm: 0, name: 1, release: true}, {vm: 2, name: 2},
	{vm: 1, name: 1, release: true}, {vm: 2, name: 1}, {vm: 2, name: 2, release: true}, {vm: 0, name: 2},
	{vm: 1, name: 0, release: true}, {vm: 2, name: 0, shared: true}, {vm: 2, name: 3},
}

// when is the time of a round at which the daemon is to be killed.
type when int

const (
	inWork when = iota
	atRestart
	inPlace
	later
	atEnd
	withoutHolder
	byOperator
	withoutJournal
)

// round runs the daemon with an environment that kills it, or kills it after a
// delay, during the workload; starts it again; and checks everything. It reports
// whether the daemon was killed. With atRestart it is killed anyway, and the
// environment is that of the next one, which finds its locks; inPlace restarts it in
// place after the workload, and kills it after that if the environment does not.
// With atEnd the environment is that of the last one, which stops when nothing is held
// any more. With later it gets the time to come to what it does about locks that are held
// for a while. withoutHolder is atRestart after the process that keeps files locked was
// killed too. For byOperator see operatorRound,
// and goneRound for withoutJournal.
func (w *world) round(t *testing.T, env string, delay time.Duration, at when) (killed bool) {
	vms := []*vm{newVM(t, 0), newVM(t, 1), newVM(t, 2)}
	state := map[string]*told{}
	for _, name := range w.names {
		state[name] = &told{owners: map[*vm]int{}}
	}
	first := env
	switch at {
	case atRestart, atEnd, withoutHolder:
		first = w.first
	}
	d := w.start(t, first)
	var holders []int
	if at == withoutHolder {
		if holders = childrenOf(t, d.cmd.Process.Pid); len(holders) != 1 {
			t.Fatalf("the daemon has the children %v, and should have one, which keeps files locked", holders)
		}
	}
	if delay > 0 {
		timer := time.AfterFunc(delay, func() { d.cmd.Process.Signal(syscall.SIGKILL) })
		defer timer.Stop()
	}
	if w.space != "" {
		w.makeAndDelete(vms[0])
	}
	completed := w.work(vms, state, d)
	if completed && at == later {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = lab.WaitFor(ctx, "the daemon to be killed", func(context.Context) (bool, error) { return d.ended(), nil })
	}
	if at == inPlace && completed {
		// Several times, also from one that was restarted so before.
		for range 2 {
			if !d.ended() {
				d.replace(t)
			}
		}
		completed = !d.ended()
	}
	if delay > 0 || at == atRestart || at == withoutHolder || at == inPlace && env == "" {
		d.cmd.Process.Signal(syscall.SIGKILL)
	} else if completed {
		// An owner ends, which has fail points of its own.
		vms[2].end()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = lab.WaitFor(ctx, "its locks to be free", func(context.Context) (bool, error) {
			known, err := w.acquire(vms[0], w.names[3], 0)
			if err == nil {
				w.release(vms[0], w.names[3])
			}
			return !known || err == nil, nil
		})
		for _, st := range state {
			if st.owners[vms[2]] > 0 {
				st.doubt = true // nothingIsLeft sees that it is freed
			}
		}
		if !d.ended() {
			d.cmd.Process.Signal(os.Interrupt)
		}
	}
	<-d.done
	killed = endedBySignal(d.err)
	if !killed && d.err != nil {
		t.Fatalf("the daemon ended by itself: %v\n%s", d.err, d.out.String())
	}

	if killed && w.killed != nil {
		w.killed()
	}
	for _, pid := range holders {
		endProcess(t, pid)
	}
	if at == atRestart || at == withoutHolder {
		next := w.start(t, env)
		if !next.ended() {
			next.stop(t)
		}
		killed = endedBySignal(next.err)
	}
	if !inside() {
		w.start(t, "").kill(t)
		w.compare(t, state)
	}
	again := w.start(t, "")
	defer func() {
		if again.ended() {
			return
		}
		again.stop(t)
		if t.Failed() {
			t.Logf("the daemon that was to end:\n%s\nthe daemon after it:\n%s", d.out.String(), again.out.String())
		}
	}()
	if inside() {
		w.compareJournal(t, state)
	}
	w.check(t, vms, state)
	w.nothingIsLeft(t, vms)
	if at == atEnd {
		again.stop(t)
		last := w.start(t, env)
		if !last.ended() {
			last.stop(t)
		}
		killed = endedBySignal(last.err)
		again = w.start(t, "")
		w.nothingIsLeft(t, nil)
	}
	return killed
}

// work goes through the workload, and reports whether the daemon lived to see
// its end.
func (w *world) work(vms []*vm, state map[string]*told, d *daemon) (completed bool) {
	for _, s := range w.steps {
		v, name := vms[s.vm], w.names[s.name]
		st := state[name]
		var known bool
		var err error
		if s.release {
			known, err = w.release(v, name)
		} else {
			var flags uint32
			if s.shared {
				flags = lockprogram.FlagShared
			}
			known, err = w.acquire(v, name, flags)
		}
		switch {
		case !known:
			st.doubt = true
			return false
		case err != nil:
		case s.release:
			if st.owners[v]--; st.owners[v] == 0 {
				delete(st.owners, v)
			}
		default:
			st.owners[v]++
			st.shared = s.shared
		}
		if d.ended() {
			return false
		}
	}
	return true
}

// check compares what clients were told with what the new daemon grants.
func (w *world) check(t *testing.T, vms []*vm, state map[string]*told) {
	stranger := newVM(t, 9)
	for name, st := range state {
		if st.doubt {
			continue
		}
		known, err := w.acquire(stranger, name, 0)
		if known && err != nil && strings.Contains(err.Error(), locking.ErrNotYet.Error()) {
			// The kernel has not answered yet what the daemon before had asked for.
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			_ = lab.WaitFor(ctx, "the locks to be taken back", func(context.Context) (bool, error) {
				known, err = w.acquire(stranger, name, 0)
				return !known || err == nil || !strings.Contains(err.Error(), locking.ErrNotYet.Error()), nil
			})
			cancel()
		}
		if !known {
			t.Fatalf("%s: %v", name, err)
		}
		switch held := len(st.owners) > 0; {
		case held && err == nil:
			t.Errorf("%s was granted to a stranger, and %d owners were told that they have it", name, len(st.owners))
		case held && !strings.Contains(err.Error(), "is locked"):
			t.Errorf("%s is refused for another reason: %v", name, err)
		case !held && err != nil:
			t.Errorf("%s is not free, and nobody was told that he has it: %v", name, err)
		}
		if err == nil {
			if _, err := w.release(stranger, name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for v, n := range st.owners {
			for range n {
				if _, err := w.release(v, name); err != nil {
					t.Errorf("%s cannot release %s: %v", v.owner.Name, name, err)
				}
			}
		}
	}
}

// nothingIsLeft ends all owners; then every name can be had.
func (w *world) nothingIsLeft(t *testing.T, vms []*vm) {
	for _, v := range vms {
		v.end()
	}
	last := newVM(t, 8)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, name := range w.names {
		err := lab.WaitFor(ctx, name+" to be free", func(context.Context) (bool, error) {
			_, err := w.acquire(last, name, 0)
			return err == nil, nil
		})
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := w.release(last, name); err != nil {
			t.Error(err)
		}
	}
}
