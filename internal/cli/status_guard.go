package cli

import (
	"fmt"
	"math"

	"github.com/vmlockd/vmlockd/internal/control"
)

// guard says what the guard does, and to whom. What is to be done about it the
// warnings say.
func (p *page) guard(row func(name, format string, args ...any), g control.GuardState, fencing string, members []control.Member) {
	row("guard", "%s", p.guardText(g, fencing))
	for _, vm := range g.Stopped {
		row("stopped", "%s, %s", clean(processText(vm.VM, vm.PID)), p.fateText(vm, g.Lost != ""))
	}
	for _, vm := range g.NotStopped {
		row("not stopped", "%s, %s", clean(processText(vm.VM, vm.PID)), p.paint(red, "goes on writing"))
	}
	names := map[uint32]string{}
	for _, m := range members {
		names[m.NodeID] = m.Name
	}
	for _, v := range g.Vanished {
		text := fmt.Sprintf("nothing new is granted for %d s more", wholeSeconds(v.Left))
		if v.Forever {
			text = p.paint(red, "nothing new is granted until it is back, or confirmed dead")
		}
		row("vanished", "%s, %s", clean(nodeText(v.NodeID, names[v.NodeID])), text)
	}
}

func (p *page) guardText(g control.GuardState, fencing string) (text string) {
	switch g.Mode {
	case "off":
		switch fencing {
		case control.Yes:
			text = "off: dlm_controld fences"
		case control.No:
			text = p.paint(red, "off: nothing protects disks if a host loses the cluster")
		default:
			text = p.paint(yellow, "off, and it is not known whether dlm_controld fences")
		}
	case "auto":
		text = p.paint(yellow, "auto: not known yet whether dlm_controld fences, so nothing new is granted")
	default:
		text = p.paint(green, clean(g.Mode))
	}
	switch {
	case g.Lost != "":
		text += ", " + p.paint(red, "the cluster is lost: "+clean(g.Lost))
	case g.Unsafe != "":
		text += ", " + p.paint(red, "not safe: nothing new is granted")
	}
	if g.Mode == "freeze" && g.Lost == "" {
		text += fmt.Sprintf(", grace %.0f s, hold-off %.0f s", g.Grace, g.HoldOff)
		if g.Least > 0 {
			text += fmt.Sprintf(" (%.1f s at least)", g.Least)
		}
		if !g.Promise {
			text += ", " + p.paint(yellow, "no promise to the others")
		}
	}
	if g.Watchdog != "" {
		text += ", watchdog " + clean(g.Watchdog)
	}
	return text
}

// fateText is what becomes of a process that is stopped. While the cluster is lost it
// waits for that, and after that for a proof that its locks are still its own.
func (p *page) fateText(vm control.StoppedVM, lost bool) string {
	if vm.Left <= 0 {
		if vm.Stays {
			return p.paint(red, "for good: it must never go on, end it")
		}
		return p.paint(red, "killed, and not gone yet")
	}
	unless := "its locks are proved"
	if lost {
		unless = "the cluster is back"
	}
	if vm.Stays {
		return fmt.Sprintf("for good in %d s unless %s", wholeSeconds(vm.Left), unless)
	}
	return fmt.Sprintf("killed in %d s unless %s", wholeSeconds(vm.Left), unless)
}

func processText(vm string, pid int32) string {
	if pid == 0 {
		return vm
	}
	return fmt.Sprintf("%s (pid %d)", vm, pid)
}

// wholeSeconds are more than 0 as long as any is left.
func wholeSeconds(s float64) int { return int(math.Ceil(max(s, 0))) }
