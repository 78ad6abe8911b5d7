package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/virtlockd"
)

// TestVirtlockdInCluster: what virtlockd had is locked in the cluster. What another host has is lost: nobody
// here gets it before its owner has ended. What cannot be had just now is had later, and refused until then.
func TestVirtlockdInCluster(t *testing.T) {
	nodes := dlmtest.NewCluster(2)
	at := func(node int) *cluster.Backend {
		b, err := cluster.New(cluster.Options{Lockspace: "space", Kernel: nodes.Node(node)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close(context.Background(), false) })
		return b
	}
	there := at(2)
	theirs, err := there.Open(t.Context(), locking.Ref{Name: "/both"}, false)
	if err == nil {
		err = theirs.Lock(t.Context(), locking.Exclusive)
	}
	if err != nil {
		t.Fatal(err)
	}
	here := at(1)
	j, found, err := journal.Open(t.TempDir(), "this")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	web, mail := vm(t), vm(t)
	entry := func(name string, mode locking.Mode, pid int, who string) locking.Entry {
		start, err := startOf(int32(pid))
		if err != nil {
			t.Fatal(err)
		}
		return locking.Entry{State: locking.EntryGranted, Ref: locking.Ref{Name: name}, Mode: mode,
			Owner: locking.Owner{PID: int32(pid), Name: who}, OwnerStart: start, Since: time.Now()}
	}
	r := &replaced{left: &virtlockd.State{Lockspaces: []string{"/spaces"}}, entries: []locking.Entry{
		entry("/web", locking.Exclusive, web.Process.Pid, "web"),
		entry("/shared", locking.Shared, web.Process.Pid, "web"),
		entry("/shared", locking.Shared, mail.Process.Pid, "mail"),
		entry("/both", locking.Exclusive, mail.Process.Pid, "mail"),
	}}
	c := config.Default()
	c.Backend, c.RunDir = config.BackendCluster, t.TempDir()
	log := slog.New(slog.DiscardHandler)
	taker, err := r.noteDisks(c, dlmLocks{here, nil}, j, &found, log)
	if err != nil {
		t.Fatal(err)
	}
	lost := make(chan locking.Event, 10)
	m := locking.New(locking.Options{Backend: here, Processes: owner.Processes{}, Journal: j, AnyLockspace: true, Observe: func(e locking.Event) {
		if e.Kind == locking.Lost {
			lost <- e
		}
	}})
	defer m.Close(context.Background())
	if later := m.Restore(t.Context(), taker, found.Entries, found.Lockspaces, false); later != 4 {
		t.Fatalf("%d entries for later, before the guard has begun", later)
	}
	if goOnTaking(c, dlmLocks{here, nil}, &found, log) == nil {
		t.Error("a start after a kill would take for lost what was not asked for")
	}
	if !taker.takeNow(m, log) {
		t.Fatal(m.NotYet())
	}
	if goOnTaking(c, dlmLocks{here, nil}, &found, log) != nil {
		t.Error("a start when all was taken would ask for what is lost")
	}
	if e := <-lost; e.Owner.Name != "mail" || e.Ref.Name != "/both" || len(lost) > 0 {
		t.Errorf("lost: %+v, and %d more", e, len(lost))
	}
	if n := len(m.Holders()); n != 4 {
		t.Errorf("%d are held", n)
	}

	stranger, err := m.Register(locking.Owner{PID: 1, Name: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	refused := func(name string, mode locking.Mode) bool {
		return stranger.Acquire(t.Context(), locking.Ref{Name: name}, mode, false) != nil
	}
	if !refused("/web", locking.Shared) || !refused("/shared", locking.Exclusive) || !refused("/both", locking.Shared) {
		t.Error("granted what virtlockd had")
	}
	other, err := there.Open(t.Context(), locking.Ref{Name: "/web"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Lock(t.Context(), locking.Exclusive); !errors.Is(err, locking.ErrBusy) {
		t.Errorf("the other host asks for it: %v", err)
	}
	other.Close()
	// The other host gives it up, and still nobody here gets it while one here uses it.
	if err := theirs.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !refused("/both", locking.Exclusive) {
		t.Error("granted to a third one")
	}
	_ = mail.Process.Kill()
	_ = mail.Wait()
	until(t, "its owner's end frees it", func() bool { return !refused("/both", locking.Exclusive) })
}

// TestVirtlockdInClusterLater: while a disk cannot be locked, all wait; each is asked for once it was had.
func TestVirtlockdInClusterLater(t *testing.T) {
	nodes := dlmtest.NewCluster(1)
	b, err := cluster.New(cluster.Options{Lockspace: "space", Kernel: nodes.Node(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background(), false)
	var fails atomic.Bool
	fails.Store(true)
	nodes.Node(1).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
		if fails.Load() && op.Op == "lock" && op.Name == cluster.ResourceName(locking.Ref{Name: "/b"}) {
			f.Err = syscall.ENOMEM
		}
		return f
	})
	c := config.Default()
	c.RunDir, c.RequestTimeout = t.TempDir(), config.Duration(time.Second)
	tk := newTaker(c, dlmLocks{b, nil}, slog.New(slog.DiscardHandler))
	tk.begun.Store(true)
	held := []locking.Held{}
	for _, name := range []string{"/a", "/b"} {
		ref := locking.Ref{Name: name}
		held = append(held, locking.Held{ID: cluster.ResourceName(ref), Ref: ref})
	}
	for n, res := range tk.Restore(t.Context(), held) {
		if !errors.Is(res.Err, locking.ErrNotYet) || !strings.Contains(res.Err.Error(), "virtlockd") || res.Handle != nil {
			t.Errorf("%d: %+v", n, res)
		}
	}
	fails.Store(false)
	for n, res := range tk.Restore(t.Context(), held) {
		if res.Err != nil || res.Handle == nil {
			t.Errorf("%d, when it can be had: %+v", n, res)
		}
	}
}

// TestVirtlockdInClusterKilled: the daemon is killed when it has got some of what virtlockd had. The next start takes
// that back and asks for the rest, but not for what nobody was told of.
func TestVirtlockdInClusterKilled(t *testing.T) {
	nodes := dlmtest.NewCluster(2)
	process := nodes.Node(1).NewProcess()
	first, err := cluster.New(cluster.Options{Lockspace: "space", Kernel: process})
	if err != nil {
		t.Fatal(err)
	}
	name := func(n string) locking.Held {
		ref := locking.Ref{Name: n}
		return locking.Held{ID: cluster.ResourceName(ref), Ref: ref, Told: true}
	}
	had, rest, untold := name("/had"), name("/rest"), name("/untold")
	untold.Told = false
	h, err := first.Open(t.Context(), had.Ref, false)
	if err == nil {
		err = h.Lock(t.Context(), locking.Exclusive)
	}
	if err != nil {
		t.Fatal(err)
	}
	process.Kill()
	_ = first.Close(t.Context(), false)

	c := config.Default()
	c.Backend, c.RunDir = config.BackendCluster, t.TempDir()
	log := slog.New(slog.DiscardHandler)
	second, err := cluster.New(cluster.Options{Lockspace: "space", Kernel: nodes.Node(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close(context.Background(), false)
	if goOnTaking(c, dlmLocks{second, nil}, &journal.Recovered{}, log) != nil {
		t.Error("an ordinary start asks for what is lost")
	}
	if err := os.WriteFile(filepath.Join(c.RunDir, takingName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tk := goOnTaking(c, dlmLocks{second, nil}, &journal.Recovered{}, log)
	if tk == nil {
		t.Fatal("it does not go on")
	}
	tk.begun.Store(true)
	results := tk.Restore(t.Context(), []locking.Held{had, rest, untold})
	for n, res := range results[:2] {
		if res.Err != nil || res.Handle == nil {
			t.Errorf("%d: %+v", n, res)
		}
	}
	if !errors.Is(results[2].Err, locking.ErrNotHeld) {
		t.Errorf("what nobody was told of: %+v", results[2])
	}
	other, err := cluster.New(cluster.Options{Lockspace: "space", Kernel: nodes.Node(2)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background(), false)
	for _, held := range []locking.Held{had, rest} {
		h, err := other.Open(t.Context(), held.Ref, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Lock(t.Context(), locking.Exclusive); !errors.Is(err, locking.ErrBusy) {
			t.Errorf("%s on another host: %v", held.Ref.Name, err)
		}
		h.Close()
	}
}
