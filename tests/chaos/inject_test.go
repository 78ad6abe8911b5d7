package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// play does what the schedule says, and returns when all of it is undone.
func (w *world) play(f fault) {
	if !w.wait(w.ctx, time.Until(w.began.Add(f.At))) {
		return
	}
	hit := w.claim(f)
	defer w.giveBack(f, hit)
	if why := w.unfit(f, hit); why != "" {
		w.miss(f, why)
		return
	}
	w.note("%s", f)
	err := w.do(f, hit)
	if errors.Is(err, lab.ErrState) || errors.Is(err, lab.ErrNodeOff) || errors.Is(err, lab.ErrNotFound) {
		w.miss(f, err.Error())
	} else if err != nil {
		w.t.Errorf("%s: %v", f, err)
	} else {
		w.mu.Lock()
		w.done[f.Kind]++
		w.mu.Unlock()
	}
	if f.Kind == lockdRestarted {
		return
	}
	w.last(f, hit)
	w.undo(f, hit)
	w.note("over: %s", f)
}

// claim lists the hosts that a fault is done to, which an operator leaves alone until they are given back. Those that
// are just being rebooted are not among them.
func (w *world) claim(f fault) (list []*host) {
	for _, h := range w.hosts {
		h.set(func() {
			if h.rebooting || f.Node != 0 && f.Node != h.ID() {
				return
			}
			list = append(list, h)
			h.faults++
			if w.shape.exposes(f.Kind) {
				h.unguarded++
			}
		})
	}
	return list
}

func (w *world) giveBack(f fault, hit []*host) {
	for _, h := range hit {
		h.set(func() {
			h.faults--
			if w.shape.exposes(f.Kind) {
				h.unguarded--
			}
		})
	}
}

// unfit says why a fault cannot be done now: empty if it can. The schedule leaves time for what was
// done before; where that did not do, what docs/guard.md does not cover must not happen.
func (w *world) unfit(f fault, hit []*host) string {
	s := w.shape.specOf(f.Kind)
	if len(hit) == 0 {
		return "the node is being rebooted"
	}
	if w.shape.resets && f.Node != 0 && w.off(hit[0]) {
		return "the node has no power"
	}
	if w.shape.exposes(f.Kind) {
		if st := w.status(hit[0]); !w.shape.guards(st) {
			return "the node has lost the cluster: " + brief(st)
		}
	}
	if !s.loses {
		return ""
	}
	near := hit
	if s.widely {
		near = w.hosts
	}
	for _, h := range near {
		if h.is(func() bool { return h.unguarded > 0 }) {
			return h.Name() + " has no vmlockd yet that guards it"
		}
	}
	return ""
}

func (w *world) miss(f fault, why string) {
	w.note("not done: %s: %s", f, why)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.missed++
}

// linkModules are what tc needs in the nodes' kernels. They are loaded at boot: a modprobe takes seconds on a busy machine.
var linkModules = []string{"sch_netem", "sch_ingress", "cls_matchall", "act_gact"}

// clusterDevice is a node's network device in the cluster network.
const clusterDevice = "vec0"

// tc runs tc(8) for a node's device in the cluster network, with the words after its name.
func tc(ctx context.Context, h *host, object, command string, args ...string) error {
	_, err := h.MustSucceed(ctx, "tc", append([]string{object, command, "dev", clusterDevice}, args...)...)
	return err
}

// process is whom a fault of a process is done to.
func process(h *host, k kind) *lab.Process {
	switch k {
	case corosyncKilled, corosyncStands:
		return h.Service(lab.ServiceCorosync)
	case controldKilled, controldStands:
		return h.Service(lab.ServiceDLM)
	}
	return h.Service(lab.ServiceLock)
}

// do begins a fault.
func (w *world) do(f fault, hit []*host) error {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	h := hit[0]
	switch f.Kind {
	case cut, cutAll, flapping:
		var errs []error
		for _, h := range hit {
			errs = append(errs, h.Cut(ctx))
		}
		return errors.Join(errs...)
	case deaf:
		if err := tc(ctx, h, "qdisc", "add", "clsact"); err != nil {
			return err
		}
		return tc(ctx, h, "filter", "add", "ingress", "matchall", "action", "drop")
	case mute:
		return tc(ctx, h, "qdisc", "add", "root", "netem", "loss", "100%")
	case lossy:
		return tc(ctx, h, "qdisc", "add", "root", "netem", "loss", "10%", "delay", "5ms", "5ms")
	case hostFrozen, hostFrozenLong:
		return h.Freeze(ctx)
	case powerCut, powerConfirmed:
		h.set(func() { h.closed = true })
		return h.PowerCut(ctx)
	case leaves:
		return w.leave(h)
	case corosyncKilled, controldKilled, lockdKilled:
		return process(h, f.Kind).Signal(ctx, syscall.SIGKILL)
	case corosyncStands, controldStands:
		return process(h, f.Kind).SignalGroup(ctx, syscall.SIGSTOP)
	case lockdStands:
		return process(h, f.Kind).Signal(ctx, syscall.SIGSTOP)
	case lockdStopped:
		return process(h, f.Kind).Signal(ctx, syscall.SIGTERM)
	case lockdRestarted:
		return process(h, f.Kind).Signal(ctx, syscall.SIGUSR1)
	}
	return fmt.Errorf("nobody knows how to do that")
}

// leave shuts a host down in good order: its virtual machines first. Its kernel takes three minutes to leave the lockspace if
// another host was not done with a change of membership (docs/operations.md).
func (w *world) leave(h *host) error {
	ctx, cancel := context.WithTimeout(w.ctx, 4*time.Minute)
	defer cancel()
	h.set(func() { h.closed = true })
	if err := w.endWriters(ctx, h); err != nil {
		return err
	}
	for _, name := range []string{lab.ServiceLock, lab.ServiceDLM, lab.ServiceCorosync} {
		if err := h.Service(name).Stop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// last waits until a fault is over, and does what belongs to it meanwhile.
func (w *world) last(f fault, hit []*host) {
	ctx, cancel := context.WithDeadline(w.ctx, w.began.Add(f.end()))
	defer cancel()
	switch f.Kind {
	case flapping:
		for there := false; w.wait(ctx, f.Beat); there = !there {
			change := hit[0].Heal
			if there {
				change = hit[0].Cut
			}
			if err := change(w.ctx); err != nil {
				w.t.Errorf("%s: %v", f, err)
			}
		}
	case powerConfirmed:
		w.confirm(ctx, hit[0])
	}
	<-ctx.Done()
}

// confirm says on another host that one is off, as soon as that takes it.
func (w *world) confirm(ctx context.Context, off *host) {
	for w.wait(ctx, time.Second) {
		for _, h := range w.hosts {
			if h == off || h.is(func() bool { return h.faults > 0 || h.rebooting }) {
				continue
			}
			res, err := h.Exec(ctx, "vmlockctl", "confirm-dead", "--yes", "--reason", "its power was cut", off.Name())
			if err == nil && res.OK() {
				w.note("an operator on %s has said that %s is off", h.Name(), off.Name())
				return
			}
		}
	}
	w.note("no host could be told that %s is off", off.Name())
}

// undo ends a fault, as far as that can be done: what needs a reboot is left to the operator. What it was done to may be gone.
func (w *world) undo(f fault, hit []*host) {
	ctx, cancel := context.WithTimeout(w.ctx, 4*time.Minute)
	defer cancel()
	var err error
	switch f.Kind {
	case cut, cutAll, flapping:
		for _, h := range hit {
			err = errors.Join(err, h.Heal(ctx))
		}
	case deaf:
		err = tc(ctx, hit[0], "qdisc", "del", "clsact")
	case mute, lossy:
		err = tc(ctx, hit[0], "qdisc", "del", "root")
	case hostFrozen, hostFrozenLong:
		err = hit[0].Thaw(ctx)
	case powerCut, powerConfirmed, leaves:
		err = w.boot(ctx, hit[0])
		hit[0].set(func() { hit[0].closed = false })
	case corosyncStands, controldStands:
		err = process(hit[0], f.Kind).SignalGroup(ctx, syscall.SIGCONT)
	case lockdStands:
		err = process(hit[0], f.Kind).Signal(ctx, syscall.SIGCONT)
	case lockdStopped:
		if _, err = process(hit[0], f.Kind).Wait(ctx); err == nil {
			err = process(hit[0], f.Kind).Start(ctx)
		}
	case lockdKilled:
		err = process(hit[0], f.Kind).Start(ctx)
	}
	if err != nil && !errors.Is(err, lab.ErrState) && !errors.Is(err, lab.ErrNodeOff) && !errors.Is(err, lab.ErrNotFound) {
		w.t.Errorf("%s: it cannot be undone: %v", f, err)
	}
	if w.shape.specOf(f.Kind).unguards {
		wait, cancel := context.WithTimeout(w.ctx, time.Minute)
		defer cancel()
		err := lab.WaitFor(wait, "vmlockd to guard, or its host to need a reboot", func(context.Context) (bool, error) {
			st := w.status(hit[0])
			return w.shape.guards(st) || st != nil && st.Cluster.Lockspace.State == control.LockspaceDead || w.off(hit[0]), nil
		})
		if err != nil {
			w.note("%s: a minute after %q: %s", hit[0].Name(), f.Kind, brief(w.status(hit[0])))
		}
	}
}

// boot gives a host power again, once the others have noticed that it was off: see lab.Node.Boot.
func (w *world) boot(ctx context.Context, h *host) error {
	if err := h.PowerCut(ctx); err != nil {
		return err
	}
	noticed, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(noticed, "the others to notice", func(ctx context.Context) (bool, error) {
		for _, other := range w.hosts {
			if other == h || other.is(func() bool { return other.faults > 0 || other.rebooting }) {
				continue
			}
			one, cancel := context.WithTimeout(ctx, 30*time.Second)
			ring, err := other.Ring(one)
			cancel()
			if err == nil && slices.Contains(ring, h.ID()) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		w.note("%s is booted although others have not noticed that it was off", h.Name())
	}
	// The others fence what they have lost, also when it boots just then.
	for try := 1; ; try++ {
		if err = h.Boot(ctx); err == nil || try == 3 || w.shape.fencing == "" || !w.off(h) {
			return err
		}
		w.note("%s was fenced while it booted", h.Name())
	}
}

// off reports whether a host is known to be without power.
func (w *world) off(h *host) bool {
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	st, err := h.Status(ctx)
	return err == nil && st.State == lab.NodeOff
}

// resetBySoftdog cuts the power of a host whose softdog resets it: in the lab the kernel stands still then, and does not boot.
func (w *world) resetBySoftdog(ctx context.Context, h *host) {
	for w.wait(ctx, 200*time.Millisecond) {
		console, err := os.ReadFile(filepath.Join(w.LogDir(), h.Name(), "console.log"))
		if err != nil || !wasReset(string(console)) || w.off(h) {
			continue
		}
		w.note("%s is reset by its watchdog", h.Name())
		w.mu.Lock()
		w.resets++
		w.mu.Unlock()
		if err := h.PowerCut(ctx); err != nil && ctx.Err() == nil {
			w.t.Errorf("%s cannot be switched off: %v", h.Name(), err)
		}
	}
}

// wasReset reports whether softdog was the last one to say something of this boot (drivers/watchdog/softdog.c).
func wasReset(console string) bool {
	return strings.LastIndex(console, "softdog: Initiating system reboot") > strings.LastIndex(console, "\n===== node ")
}
