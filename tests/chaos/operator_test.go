package chaos_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// stuckAfter is how long a host may be neither well nor broken, with nothing being done to any
// of them: longer than a hold-off, and the boot of another one.
const stuckAfter = 100 * time.Second

// refusesFor is how long a dlm_controld must look as if it had refused a message: messages may be under way.
const refusesFor = 20 * time.Second

// operate looks after a host, as an operator would, or the service manager: where corosync or
// dlm_controld have ended, or the kernel's lockspace is dead, only a reboot of it helps. So it is where vmlockd says
// that its host must be rebooted, as dlm_controld waits for messages, and dlm_controld says of which nodes.
func (w *world) operate(ctx context.Context, h *host) {
	ill, refuses := time.Now(), time.Time{} // since when; the latter is zero if its dlm_controld refuses nothing
	for round := 0; w.wait(ctx, 1500*time.Millisecond); round++ {
		if h.is(func() bool { return h.faults > 0 || h.rebooting }) {
			ill = time.Now()
			continue
		}
		why, with := w.broken(h), []*host{h}
		if why == "" && round%4 == 0 {
			st := w.status(h)
			var waiting, refusing []*host
			if !w.shape.well(st) {
				waiting, refusing = w.awaiting()
			}
			// Where corosync delivers nothing, it is not refused.
			if !slices.Contains(refusing, h) || st != nil && st.Cluster.Guard.Lost != "" {
				refuses = time.Time{}
			} else if refuses.IsZero() {
				refuses = time.Now()
			}
			switch {
			case st != nil && st.Cluster.Lockspace.State == control.LockspaceDead:
				why = "its lockspace is dead"
			case !refuses.IsZero():
				switch {
				case time.Since(refuses) < refusesFor:
				case st != nil && strings.Contains(st.Cluster.Lockspace.WaitsFor, "this host must be rebooted, at the same time as all others"):
					with = waiting
					why = fmt.Sprintf("REFUSED MESSAGE: %s\n%s", brief(st), w.controld(h))
					w.mu.Lock()
					w.refused++
					w.mu.Unlock()
				case w.somebody(func(o *host) bool { return o.faults > 0 || o.rebooting }):
					ill = time.Now()
				case time.Since(ill) > stuckAfter:
					why = fmt.Sprintf("STUCK for %v, as its dlm_controld has refused a message: %s", stuckAfter, brief(st))
					w.t.Errorf("dlm_controld of node %d has refused a message, and vmlockd there does not say that it must be rebooted: %s", h.ID(), brief(st))
				}
			case len(refusing) > 0: // it waits for that one
				ill = time.Now()
			case w.shape.well(st), w.somebody(func(o *host) bool { return o.faults > 0 || o.rebooting }):
				ill = time.Now()
			case time.Since(ill) > stuckAfter:
				known := w.controld(h)
				why = fmt.Sprintf("STUCK for %v: %s\n%s", stuckAfter, brief(st), known)
				if w.changing() {
					// None of this is vmlockd's: the daemons of dlm exchange these messages among themselves.
					w.mu.Lock()
					w.changes++
					w.mu.Unlock()
				} else if hang := w.kernelHang(h); hang != "" {
					// Seen twice in thirty losses of a node (docs/faults.md); there is nothing that vmlockd could do about it.
					why += "\nKERNEL HANG: " + hang
					w.mu.Lock()
					w.hangs++
					w.mu.Unlock()
				} else if w.complete(h) {
					w.t.Errorf("node %d is not well, although its dlm_controld has all nodes: %s", h.ID(), brief(st))
				}
			}
		}
		if why == "" {
			continue
		}
		w.reboot(with, why)
		ill = time.Now()
	}
}

func (w *world) somebody(f func(*host) bool) bool {
	for _, h := range w.hosts {
		if h.is(func() bool { return f(h) }) {
			return true
		}
	}
	return false
}

// broken says what has ended on a host that only a reboot brings back. A vmlockd that has ended is started again.
func (w *world) broken(h *host) string {
	if w.shape.resets && w.off(h) {
		return "it is without power: it was fenced, or reset by its watchdog"
	}
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	list, err := h.Processes(ctx)
	if err != nil {
		return ""
	}
	for _, p := range list {
		if p.State != lab.ProcessExited && p.State != lab.ProcessFailed {
			continue
		}
		switch p.Name {
		case lab.ServiceCorosync, lab.ServiceDLM:
			return fmt.Sprintf("%s has ended with status %d", p.Name, p.Status)
		case lab.ServiceLock:
			if h.is(func() bool { return h.faults > 0 }) {
				return ""
			}
			w.note("vmlockd of %s has ended by itself, with status %d, and is started again", h.Name(), p.Status)
			if err := h.Service(lab.ServiceLock).Start(ctx); err != nil {
				w.note("%s: %v", h.Name(), err)
			}
		}
	}
	return ""
}

// complete reports whether dlm_controld of a host has all nodes.
func (w *world) complete(h *host) bool {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	m, err := h.Membership(ctx)
	return err == nil && m.Quorate && len(m.Members) == w.shape.nodes
}

// changing reports whether dlm_controld of any host is in the middle of a change of the lockspace.
func (w *world) changing() bool {
	return slices.ContainsFunc(w.hosts, func(h *host) bool { return strings.Contains(w.controld(h), "new change") })
}

// awaiting is lab.Awaiting for the hosts to which nothing is done now.
func (w *world) awaiting() (all, refusing []*host) {
	said := map[int]string{}
	for _, h := range w.hosts {
		if h.is(func() bool { return h.faults > 0 || h.rebooting }) {
			continue
		}
		// In the lab a dlm_controld that stands still ends when it goes on and who has asked it is gone: longer than any fault lasts.
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		res, err := h.Exec(ctx, "dlm_tool", "ls", "-n")
		cancel()
		if err == nil && res.OK() {
			said[h.ID()] = res.Stdout
		}
	}
	waits, refuses := lab.Awaiting(said)
	for _, id := range waits {
		all = append(all, w.hosts[id-1])
		if slices.Contains(refuses, id) {
			refusing = append(refusing, w.hosts[id-1])
		}
	}
	return all, refusing
}

// kernelHang says that the kernel of a host has begun a recovery of the DLM and does not get to the end of it, if it is so. It excuses this
// host alone: what keeps others from being well has to be found out there.
func (w *world) kernelHang(h *host) string {
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	said, err := h.Recovery(ctx, "vmlockd")
	if err != nil {
		return ""
	}
	return hung(h.ID(), said, w.status(h))
}

// hung judges what the kernel of a host has said of the recovery that it is in, and vmlockd there. Both must say so, the latter after
// 20 s (longRecovery in internal/backend/cluster). It is empty otherwise.
func hung(node int, said []string, st *control.Status) string {
	if len(said) == 0 || st == nil || !strings.Contains(st.Cluster.Lockspace.WaitsFor, "the kernel of a host hangs in it") {
		return ""
	}
	return fmt.Sprintf("node %d waits for %s; its kernel:\n%s", node, st.Cluster.Lockspace.WaitsFor, strings.Join(said, "\n"))
}

// controld is what dlm_controld knows.
func (w *world) controld(h *host) string {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	res, err := h.Shell(ctx, "dlm_tool status; dlm_tool ls; corosync-quorumtool -s")
	if err != nil {
		return err.Error()
	}
	return res.Stdout
}

// reboot reboots those of some hosts to which nothing is done, so that all of them are off at the same time.
func (w *world) reboot(list []*host, why string) {
	list = slices.DeleteFunc(slices.Clone(list), func(h *host) bool {
		busy := false
		h.set(func() {
			busy = h.faults > 0 || h.rebooting
			h.rebooting = !busy || h.rebooting
		})
		return busy
	})
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Minute)
	defer cancel()
	for _, h := range list {
		w.note("node %d is rebooted: %s", h.ID(), why)
		w.mu.Lock()
		w.reboots = append(w.reboots, fmt.Sprintf("node %d: %s", h.ID(), why))
		w.mu.Unlock()
		if err := h.PowerCut(ctx); err != nil {
			w.t.Errorf("node %d cannot be switched off: %v", h.ID(), err)
		}
	}
	for _, h := range list {
		if err := w.boot(ctx, h); err != nil {
			w.t.Errorf("node %d cannot be rebooted: %v", h.ID(), err)
		}
		w.note("node %d has booted", h.ID())
	}
	for _, h := range list {
		h.set(func() { h.rebooting = false })
	}
}
