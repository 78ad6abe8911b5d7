package guard

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// frozen is a process that was stopped.
type frozen struct {
	Frozen
	proc    Process
	wish    Wish
	stopped bool // seen to be
	killed  bool
	expired bool // it is to stay stopped for an operator
	proving bool
	// provedAt is when the kernel had converted every lock of it, in losses; 0: it has not.
	provedAt time.Duration
	losses   int
}

// lockedFreeze stops every owner that is not stopped yet. All are noted first, and
// the log is told of them last.
func (g *Guard) lockedFreeze(v view) {
	var fresh []*frozen
	var tell []func()
	for _, o := range g.owners {
		key := ownerKey{o.PID, o.Start}
		if _, ok := g.unopened[key]; ok || g.frozen[key] != nil {
			continue
		}
		wish := g.wish(o)
		if o.Start == 0 || wish == WishIgnore {
			tell = append(tell, func() {
				g.lockedTellOnce(key, "a process with cluster locks goes on although this host has lost the cluster: its disks may be destroyed", o)
			})
			continue
		}
		proc, err := g.lockedTake(o)
		if errors.Is(err, locking.ErrNoProcess) {
			continue
		}
		if err != nil {
			tell = append(tell, func() { g.lockedNotStopped(o, err) })
			continue
		}
		f := &frozen{proc: proc, wish: wish, Frozen: Frozen{Owner: o, Since: v.at, Deadline: g.lockedDeadline(v)}}
		g.frozen[key] = f
		fresh = append(fresh, f)
	}
	if len(fresh) > 0 {
		g.lockedSave()
	}
	for _, f := range fresh {
		if err := f.proc.Stop(); err != nil {
			tell = append(tell, func() { g.lockedNotStopped(f.Owner, err) })
		}
	}
	for _, f := range tell {
		f()
	}
	for _, f := range fresh {
		killed := max(f.Deadline-v.at, 0).String()
		if f.wish == WishFreeze {
			killed = "never" // it stays stopped for an operator
		}
		g.log.Warn("process stopped as this host has lost the cluster", "event", "guard-stopped", "pid", f.PID, "vm", f.Name, "reason", g.lost, "killed_in", killed)
	}
	for _, f := range g.frozen {
		f.provedAt = 0
	}
}

// lockedDeadline is until when a process that is stopped now may go on.
func (g *Guard) lockedDeadline(v view) time.Duration {
	switch t := g.timing; {
	case !t.Known():
		return v.at + t.Grace
	case !v.isProven && g.began-v.proven > t.Lease():
		// No guard was here for longer than a lease, and the promise of the one before is
		// void. The cluster may be well: this guard needs the time to prove that.
		return v.at + t.Lease() + t.Grace
	default:
		return min(v.at+t.Grace, v.proven+t.FenceBy())
	}
}

func (g *Guard) wish(o Owner) Wish {
	if g.o.Wish == nil {
		return WishKill
	}
	return g.o.Wish(o)
}

func (g *Guard) lockedTellOnce(key ownerKey, text string, o Owner) {
	if _, ok := g.told[key]; ok {
		return
	}
	if len(g.told) > maxTold {
		clear(g.told)
	}
	g.told[key] = struct{}{}
	g.log.Error(text, "event", "guard-unprotected", "pid", o.PID, "vm", o.Name)
}

// maxTold bounds what is remembered only to say it once.
const maxTold = 10_000

func (g *Guard) lockedStop(f *frozen) {
	if err := f.proc.Stop(); err != nil {
		g.lockedNotStopped(f.Owner, err)
	}
}

func (g *Guard) lockedNotStopped(o Owner, err error) {
	g.log.Error("a process cannot be stopped, trying again", "event", "guard-failed", "pid", o.PID, "vm", o.Name, "reason", err)
}

// lockedTend ends, or lets go on, what was stopped. sure: this host has the cluster.
func (g *Guard) lockedTend(ctx context.Context, v view, sure bool, wg *sync.WaitGroup) {
	for key, f := range g.frozen {
		select {
		case <-f.proc.Gone():
			f.proc.Close()
			delete(g.frozen, key)
			g.ledger.changed = true // so that it is noted
			g.log.Info("process that was stopped has ended", "pid", f.PID, "vm", f.Name)
			continue
		default:
		}
		if !f.stopped {
			f.stopped = f.proc.Stopped()
		}
		g.lockedStop(f) // again, should somebody have continued it
		switch {
		case v.at >= f.Deadline:
			g.lockedOver(f)
		case !sure || f.losses != g.losses:
			f.losses, f.provedAt = g.losses, 0
		case f.provedAt != 0 && v.proven > f.provedAt && v.agreed(f.provedAt+1) && g.lockedSettled(v):
			g.lockedContinue(key, f)
		case f.provedAt == 0 && !f.proving && v.proven > f.Since && v.agreed(f.Since) && g.lockedSettled(v):
			f.proving = true
			losses := g.losses
			wg.Go(func() { g.prove(ctx, key, f, losses) })
		}
	}
}

// lockedOver is for a process whose time is over.
func (g *Guard) lockedOver(f *frozen) {
	if f.wish == WishFreeze {
		if !f.expired {
			f.expired = true
			g.log.Error("process stays stopped until an operator ends it: it must not go on any more", "event", "guard-left-stopped", "pid", f.PID, "vm", f.Name)
		}
		return
	}
	if err := f.proc.Kill(); err != nil {
		g.log.Error("a process cannot be killed, trying again", "event", "guard-failed", "pid", f.PID, "vm", f.Name, "reason", err)
		return
	}
	if !f.killed {
		f.killed = true
		g.log.Error("process killed: the cluster was not back in time, or its locks could not be proved", "event", "guard-killed", "pid", f.PID, "vm", f.Name)
	}
}

// prove asks the kernel, on a goroutine of its own as that may take time.
func (g *Guard) prove(ctx context.Context, key ownerKey, f *frozen, losses int) {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	err := g.o.Prove(ctx, f.Owner)
	g.mu.Lock()
	defer g.mu.Unlock()
	f.proving = false
	if err != nil {
		g.log.Warn("it is not proved that the locks of a stopped process are still its own", "pid", f.PID, "vm", f.Name, "reason", err)
		return
	}
	if g.frozen[key] == f && g.losses == losses && g.lost == "" {
		f.provedAt = g.o.Clock()
		g.news() // what comes back was sent after the proof
	}
}

// proveTimeout bounds one attempt to prove the locks of one process.
const proveTimeout = 2 * time.Second

// lockedContinue lets a process go on. If the daemon ends before that is noted, the
// next one stops it again, and asks for another proof.
func (g *Guard) lockedContinue(key ownerKey, f *frozen) {
	if now := g.o.Clock(); now >= f.Deadline {
		return // it took too long to get here
	}
	if err := f.proc.Continue(); err != nil {
		g.log.Error("a process cannot be continued, trying again", "event", "guard-failed", "pid", f.PID, "vm", f.Name, "reason", err)
		return
	}
	delete(g.frozen, key)
	g.held[key] = &held{f.proc, g.steps}
	g.lockedSave()
	g.log.Warn("process goes on: the cluster is back, and the kernel has proved its locks", "event", "guard-continued", "pid", f.PID, "vm", f.Name,
		"stopped_for", g.o.Clock()-f.Since)
}

// lockedRestore goes on with a process that an earlier daemon has stopped, or was
// about to. One that cannot be opened is tried again: what is noted of it must not be lost, as
// it has to be killed when its time is over, and must not get another one.
func (g *Guard) lockedRestore(f Frozen) {
	key := ownerKey{f.PID, f.Start}
	proc, err := g.lockedTake(f.Owner)
	if err != nil && !errors.Is(err, locking.ErrNoProcess) {
		if _, ok := g.unopened[key]; !ok {
			g.unopened[key] = f
			g.log.Error("a process that an earlier vmlockd has stopped cannot be opened, trying again", "event", "guard-failed", "pid", f.PID, "vm", f.Name, "reason", err)
		}
		return
	}
	delete(g.unopened, key)
	if err != nil {
		return
	}
	r := &frozen{Frozen: f, proc: proc, wish: g.wish(f.Owner)}
	g.frozen[key] = r
	g.lockedStop(r)
}

// lookForStopped takes owners that are stopped for ones that an earlier daemon has
// stopped, when that is not known. Nobody knows until when they may go on.
func (g *Guard) lookForStopped() {
	owners := g.o.Owners()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range owners {
		if o.Start == 0 {
			continue
		}
		proc, err := g.o.Processes.Open(o.PID, o.Start)
		if err != nil {
			continue
		}
		if !proc.Suspended() {
			proc.Close()
			continue
		}
		g.frozen[ownerKey{o.PID, o.Start}] = &frozen{Frozen: Frozen{Owner: o}, proc: proc, wish: g.wish(o)}
	}
}
