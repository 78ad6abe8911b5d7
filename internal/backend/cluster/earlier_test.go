package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld/controldtest"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// lastClose is a process that closes the device last, and that of an earlier daemon.
type lastClose struct {
	count *dlm.UnderWay

	mu        sync.Mutex    // guards what follows
	closed    chan struct{} // is closed when the earlier one's device is
	ended     chan struct{} // of Keep
	kept      int
	dismissed int
	stuck     bool // Release waits for its context
	fail      error
}

func newLastClose(t *testing.T) *lastClose {
	t.Helper()
	count, err := dlm.NewUnderWay(make([]byte, dlm.UnderWaySize))
	if err != nil {
		t.Fatal(err)
	}
	return &lastClose{closed: make(chan struct{}), count: count}
}

func (l *lastClose) Earlier(ctx context.Context) error {
	select {
	case <-l.closed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *lastClose) Keep(*os.File) (<-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, l.fail
	}
	l.kept++
	l.ended = make(chan struct{})
	return l.ended, nil
}

func (l *lastClose) Release(ctx context.Context) error {
	l.mu.Lock()
	stuck := l.stuck
	l.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (l *lastClose) Dismiss() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dismissed++
}

func (l *lastClose) UnderWay() *dlm.UnderWay { return l.count }

// restarted is a host whose daemon was killed with a lock held, while the lockspace
// is stopped; the kernel keeps its device open until it runs again.
type restarted struct {
	*world
	last    *lastClose
	earlier *dlmtest.Process
	manager *locking.Manager
	ps      *locktest.Processes
	owner   *locktest.Process
	events  []locking.Event
	done    chan struct{} // closed when what was held has been settled
}

func afterKill(t *testing.T, lose func(*controldtest.Daemon), f func(*restarted)) {
	fakeclock.Test(t, func(t *testing.T) {
		w := &world{t: t, nodes: dlmtest.NewCluster(3), controld: controldtest.New(3, space)}
		r := &restarted{world: w, last: newLastClose(t), ps: locktest.NewProcesses(t), done: make(chan struct{})}
		r.earlier = w.nodes.Node(1).NewProcess()
		had, err := dlm.Create(t.Context(), r.earlier, space, dlm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := had.Lock(t.Context(), cluster.ResourceName(locking.Ref{Name: "held"}), dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true}); err != nil {
			t.Fatal(err)
		}
		w.nodes.Suspend(space)
		lose(w.controld)
		r.earlier.Kill()
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = had.Close(gone)
		r.owner = r.ps.Start(7)
		entry := locking.Entry{Seq: 1, State: locking.EntryGranted, ID: cluster.ResourceName(locking.Ref{Name: "held"}), Ref: locking.Ref{Name: "held"},
			Owner: locking.Owner{PID: 7, Name: "web"}, OwnerStart: r.owner.StartTime(), Since: time.Now()}
		journal := locktest.NewJournal(t)
		journal.Load([]locking.Entry{entry})

		begin := time.Now()
		table := atomic.Pointer[locking.Manager]{}
		r.b, err = cluster.New(cluster.Options{
			Lockspace: space, Kernel: w.nodes.Node(1).NewProcess(), Controld: w.controld.Client(), Log: slog.New(slog.NewTextHandler(&w.log, nil)), LastClose: r.last,
			Identify: ledTo,
			Holders: func() []locking.Holder {
				if m := table.Load(); m != nil {
					return m.Holders()
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		r.manager = locking.New(locking.Options{
			Backend: r.b, Processes: r.ps, Journal: journal, AnyLockspace: true, RequestTimeout: 10 * time.Second,
			Observe: func(e locking.Event) {
				w.mu.Lock()
				defer w.mu.Unlock()
				r.events = append(r.events, e)
			},
			Later: func(_ int, why error, _ time.Duration) {
				if why == nil {
					close(r.done)
				}
			},
		})
		table.Store(r.manager)
		if n := r.manager.Restore(t.Context(), r.b, []locking.Entry{entry}, nil, false); n != 1 {
			t.Errorf("%d entries are settled later, want 1", n)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("nothing is served for %v", took)
		}
		f(r)
		r.owner.Kill()
		fakeclock.Wait()
		if err := r.manager.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := r.b.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}

// ledTo is a host on which /link leads to what is held, and /own is a disk of its own.
func ledTo(_ context.Context, path string) (cluster.Disk, error) {
	switch path {
	case "/link":
		return cluster.Disk{Name: "held", Local: "device"}, nil
	case "/own":
		return cluster.Disk{Name: "file", Here: true}, nil
	}
	return cluster.Disk{Name: path}, nil
}

// acquire asks for a lock and expects a refusal with that text within a second.
func (r *restarted) refusedSoon(name, text string) {
	r.t.Helper()
	g, err := r.manager.Register(locking.Owner{PID: 7, Name: "web"})
	if err != nil {
		r.t.Fatal(err)
	}
	defer g.Close()
	begin := time.Now()
	err = g.Acquire(r.t.Context(), locking.Ref{Name: name}, locking.Exclusive, false)
	if e, ok := errors.AsType[*locking.Error](err); !ok || e.Kind != locking.KindUnavailable || !strings.Contains(err.Error(), text) {
		r.t.Errorf("%s: got %v, want %q", name, err, text)
	}
	if took := time.Since(begin); took > time.Second {
		r.t.Errorf("%s was refused after %v", name, took)
	}
}

// heal lets the lockspace run and the earlier device be closed, and waits until what
// was held is taken back.
func (r *restarted) heal() {
	r.t.Helper()
	r.nodes.Resume(space)
	fakeclock.Wait()
	close(r.last.closed)
	<-r.done
	held := r.locked("held")
	if len(held) != 1 || held[0].Orphan {
		r.t.Errorf("held: %+v", held)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var taken int
	for _, e := range r.events {
		switch e.Kind {
		case locking.Lost:
			r.t.Errorf("called lost: %v", e.Err)
		case locking.TakenBack:
			taken++
		}
	}
	if taken != 1 {
		r.t.Errorf("%d locks were taken back, want 1", taken)
	}
}

// The daemon is killed and started while there is no quorum.
func TestRestartWhileStopped(t *testing.T) {
	noQuorum := func(d *controldtest.Daemon) { d.Lose(time.Now(), true, 2, 3) }
	afterKill(t, noQuorum, func(r *restarted) {
		for range 3 { // now, and later
			for _, name := range []string{"held", "free", "/link", "/own"} {
				r.refusedSoon(name, "the cluster has no quorum: 2 of 3 nodes are missing: 2, 3")
			}
			time.Sleep(time.Minute) // by the bubble's clock: what is asked and logged again and again has its time
		}
		if n := strings.Count(r.logged(), "event=lockspace-not-joined"); n > 2 {
			t.Errorf("logged %d times that it waits:\n%s", n, r.logged())
		}
		if len(r.manager.Holders()) != 1 {
			t.Errorf("holders: %v", r.manager.Holders())
		}
		r.heal()
		other := r.ps.Start(8)
		g, err := r.manager.Register(locking.Owner{PID: 8, Name: "db"})
		if err != nil {
			t.Fatal(err)
		}
		err = g.Acquire(r.t.Context(), locking.Ref{Name: "/link"}, locking.Exclusive, false)
		if e, ok := errors.AsType[*locking.Error](err); !ok || e.Kind != locking.KindBusy {
			t.Errorf("what is held under another path: %v", err)
		}
		if err := g.Acquire(r.t.Context(), locking.Ref{Name: "/own"}, locking.Exclusive, false); err != nil {
			t.Error(err)
		}
		g.Close()
		other.Kill()
		fakeclock.Wait()
		if strings.Contains(r.logged(), "level=ERROR") {
			t.Errorf("logged:\n%s", r.logged())
		}
	})
}

// Fencing is named with the time since the loss, which is no news each time.
func TestRestartWhileFencing(t *testing.T) {
	afterKill(t, func(d *controldtest.Daemon) { d.Lose(time.Now(), true, 3) }, func(r *restarted) {
		r.refusedSoon("held", "waiting for fencing of node 3")
		time.Sleep(10 * time.Minute) // by the bubble's clock: the time since the loss, which is in the text, changes
		r.refusedSoon("free", "waiting for fencing of node 3")
		if n := strings.Count(r.logged(), "event=lockspace-not-joined"); n > 2 {
			t.Errorf("logged %d times that it waits:\n%s", n, r.logged())
		}
		r.heal()
	})
}

// Without dlm_controld only a reboot helps, and that is said with who holds what.
func TestRestartWithoutControld(t *testing.T) {
	afterKill(t, func(d *controldtest.Daemon) { d.Kill() }, func(r *restarted) {
		time.Sleep(time.Minute) // by the bubble's clock: long enough to log something twice
		r.refusedSoon("held", "dlm_controld is not running")
		r.refusedSoon("free", "dlm_controld is not running")
		for text, most := range map[string]int{"event=reboot-needed": 2, "event=held-until-reboot": 1, "virtual machine web": 1} {
			if n := strings.Count(r.logged(), text); n < 1 || n > most {
				t.Errorf("%q is logged %d times:\n%s", text, n, r.logged())
			}
		}
		r.heal() // which a real host does only by a reboot
	})
}

// duplicating is a kernel whose devices can be duplicated.
type duplicating struct{ dlm.Kernel }

func (k duplicating) Lockspace(name string, minor uint32) (dlm.Device, error) {
	d, err := k.Kernel.Lockspace(name, minor)
	return duplicable{d}, err
}

type duplicable struct{ dlm.Device }

func (duplicable) Duplicate() (*os.File, error) { return os.Open(os.DevNull) }

func withLastClose(t *testing.T, f func(*testing.T, *cluster.Backend, *lastClose, func() string)) {
	fakeclock.Test(t, func(t *testing.T) {
		var log testenv.Log
		last := newLastClose(t)
		close(last.closed)
		b, err := cluster.New(cluster.Options{Lockspace: space, Kernel: duplicating{dlmtest.NewCluster(1).Node(1)},
			LastClose: last, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		f(t, b, last, log.String)
	})
}

// The process that closes the device last is started again when it ends.
func TestLastCloseEnds(t *testing.T) {
	withLastClose(t, func(t *testing.T, b *cluster.Backend, last *lastClose, logged func() string) {
		if last.dismissed != 1 {
			t.Errorf("the earlier program's was told %d times to end", last.dismissed)
		}
		kept := func() int {
			last.mu.Lock()
			defer last.mu.Unlock()
			return last.kept
		}
		if n := kept(); n != 1 {
			t.Fatalf("%d started", n)
		}
		time.Sleep(time.Hour) // by the bubble's clock: nothing may start another one
		if n := kept(); n != 1 {
			t.Errorf("%d started, while the first lives", n)
		}
		last.mu.Lock()
		last.fail = fmt.Errorf("no memory")
		close(last.ended)
		last.mu.Unlock()
		time.Sleep(time.Minute) // by the bubble's clock: many attempts, one line
		if text := logged(); strings.Count(text, "has ended; starting it again") != 1 || strings.Count(text, "no memory") != 1 {
			t.Errorf("logged:\n%s", text)
		}
		last.mu.Lock()
		last.fail = nil
		last.mu.Unlock()
		time.Sleep(time.Minute) // by the bubble's clock: more than the pause between two attempts
		if n := kept(); n != 2 {
			t.Errorf("%d started after the first has ended", n)
		}
		if err := b.Close(t.Context(), true); err != nil {
			t.Error(err)
		}
	})
}

// Closing ends in bounded time when the kernel does not let the device be closed,
// and does not leave the lockspace.
func TestLastCloseIsStuck(t *testing.T) {
	withLastClose(t, func(t *testing.T, b *cluster.Backend, last *lastClose, _ func() string) {
		last.mu.Lock()
		last.stuck = true
		last.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
	})
}

// What was handed over and no record tells of is given back, and logged; a lock that
// holds nothing goes without a word.
func TestDropUnclaimed(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		var log testenv.Log
		nodes := dlmtest.NewCluster(1)
		o := cluster.Options{Lockspace: space, Kernel: nodes.Node(1).NewProcess(), Log: slog.New(slog.NewTextHandler(&log, nil))}
		b, err := cluster.New(o)
		if err != nil {
			t.Fatal(err)
		}
		var held []locking.Held
		for _, name := range []string{"known", "unknown"} {
			ref := locking.Ref{Name: name}
			h, err := b.Open(t.Context(), ref, false)
			if err == nil {
				err = h.Lock(t.Context(), locking.Exclusive)
			}
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, locking.Held{ID: h.ID(), Ref: ref, Mode: locking.Exclusive})
		}
		if o.Earlier, err = b.Handover(t.Context()); err != nil || o.Earlier == nil {
			t.Fatalf("handover: %v", err)
		}
		if b, err = cluster.New(o); err != nil {
			t.Fatal(err)
		}
		if res := b.Restore(t.Context(), held[:1]); res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
		if n := b.DropUnclaimed(); n != 1 {
			t.Errorf("%d are given back, want 1", n)
		}
		fakeclock.Wait()
		if names := nodes.Names(space); len(names) != 1 || names[0] != held[0].ID {
			t.Errorf("left: %v", names)
		}
		if n := strings.Count(log.String(), "no record tells"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
		if n := b.DropUnclaimed(); n != 0 {
			t.Errorf("%d again", n)
		}
		if err := b.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}
