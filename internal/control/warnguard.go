package control

import (
	"fmt"
	"math"
	"strings"
)

// warnGuard is what an operator should know of the guard: what is so, what follows,
// and what to do about it.
func (st *Status) warnGuard(g GuardState) {
	add := func(code, format string, args ...any) {
		st.Warnings = append(st.Warnings, Warning{code, fmt.Sprintf(format, args...)})
	}
	if g.Unsafe != "" {
		add(WarnGuard, "nothing new is granted: %s", g.Unsafe)
	}
	switch {
	case g.Lost != "":
		add(WarnGuard, "this host has lost the cluster: %s. Nothing new is granted here, and %s. Bring the cluster back: 'corosync-quorumtool -s', "+
			"'corosync-cfgtool -s' and 'dlm_tool status' show what is missing", g.Lost, g.stoppedText())
	case g.Unsafe != "":
	case g.Mode == "auto":
		add(WarnGuard, "it is not known yet whether dlm_controld fences lost hosts: until it is, nothing new is granted, and this host is guarded as if "+
			"nobody fenced it. That takes a moment after a start; if it does not end, dlm_controld does not answer: see 'systemctl status dlm'")
	case g.Refuses != "" && len(g.Vanished) == 0:
		add(WarnGuard, "nothing new is granted at the moment: %s", g.Refuses)
	}
	if g.Mode == "freeze" && !g.Promise && g.Lost == "" && g.Unsafe == "" && g.Least > 0 {
		add(WarnGuard, "not everything that owns a lock here would be stopped if this host lost the cluster, and the other hosts know that: see on_loss in the configuration, owners without a process, a damaged journal, and descriptors that have run out")
	}
	if len(g.NotStopped) > 0 {
		names := make([]string, len(g.NotStopped))
		for i, v := range g.NotStopped {
			names[i] = vmText(v.VM, v.PID)
		}
		add(WarnNotStopped, "not stopped, though this host has lost the cluster and others may get their disks: %s. What both write destroys these disks, so end them now (virsh destroy); "+
			"they go on as on_loss says so, or as vmlockd cannot stop them", someOf(names))
	}
	if left := g.leftStopped(); len(left) > 0 {
		add(WarnStopped, "stopped for good: %s. This host had lost the cluster for too long, so others may use their disks, and on_loss = \"freeze\" leaves the end to you: "+
			"they must never go on (no SIGCONT, no virsh resume). End them (virsh destroy), which gives their locks back, and start them where the cluster is well", someOf(left))
	}
	for _, v := range g.Vanished {
		st.warnVanished(v)
	}
	for _, why := range g.WatchdogStays {
		add(WarnGuard, "%s", why)
	}
	if w := g.Watchdog; w != "" && w != "open" && w != "closed" {
		add(WarnGuard, "the watchdog cannot be used: %s", w)
	}
}

// stoppedText says what a loss of the cluster has done to virtual machines so far.
func (g GuardState) stoppedText() string {
	switch n := len(g.Stopped); {
	case n > 0:
		return fmt.Sprintf("what has locks that other hosts could get is stopped (%d): each goes on if the cluster is back in time, and else is killed, or left stopped where on_loss says so", n)
	case len(g.NotStopped) > 0:
		return "nothing is stopped"
	}
	return "nothing is stopped, as nothing here has locks that other hosts could get"
}

// leftStopped are those whose time is over, and that are not killed.
func (g GuardState) leftStopped() (names []string) {
	for _, v := range g.Stopped {
		if v.Stays && v.Left <= 0 {
			names = append(names, vmText(v.VM, v.PID))
		}
	}
	return names
}

func (st *Status) warnVanished(v VanishedNode) {
	what := "has vanished without leaving"
	if !v.Seen {
		what = "was away when this host got into the cluster"
	}
	node := st.nodeText(v.NodeID)
	text := fmt.Sprintf("%s %s, and may still use its disks: nothing new is granted for %d seconds more. If you have seen that it is off, "+
		"'vmlockctl confirm-dead %d' ends that at once", node, what, seconds(v.Left), v.NodeID)
	if v.Forever {
		why := "as quorum is no majority in this cluster (two_node, last_man_standing, or a quorum device that leaves it to more than one part), so that it may have quorum too"
		if !v.Promised {
			why = "as its guard had not promised to stop everything there (guard.mode = \"off\", no vmlockd, on_loss = \"ignore\")"
		}
		text = fmt.Sprintf("%s %s, and may use its disks for ever, %s: nothing new is granted until it is back in the cluster. If it cannot come back, "+
			"switch it off or unplug it from the storage, see that it is, and say so with 'vmlockctl confirm-dead %d'", node, what, why, v.NodeID)
	}
	st.Warnings = append(st.Warnings, Warning{WarnHoldOff, text})
}

func vmText(vm string, pid int32) string {
	switch {
	case pid == 0:
		return vm
	case vm == "":
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("%s (pid %d)", vm, pid)
}

// someOf names a few, and says how many more there are.
func someOf(names []string) string {
	const most = 8
	if len(names) > most {
		names = append(names[:most:most], fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}

// seconds are whole ones, and more than 0 as long as any is left.
func seconds(s float64) int { return int(math.Ceil(max(s, 0))) }
