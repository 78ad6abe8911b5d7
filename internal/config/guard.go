package config

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/lazyregexp"
)

// The modes of the guard; docs/guard.md explains them.
const (
	GuardAuto    = "auto"
	GuardFencing = "fencing"
	GuardFreeze  = "freeze"
	GuardOff     = "off"
)

// What is to become of a virtual machine when its host loses the cluster.
const (
	OnLossKill   = "kill"
	OnLossFreeze = "freeze"
	OnLossIgnore = "ignore"
)

// Guard is the table [guard]. It counts only with BackendCluster.
type Guard struct {
	Mode            string    `toml:"mode"`             // GuardAuto, GuardFencing, GuardFreeze or GuardOff
	Grace           Duration  `toml:"grace"`            // 0 to 10 min from the stop of a process to its end
	HoldOff         Duration  `toml:"hold_off"`         // up to 1 h; long enough for Grace and corosync's timeouts
	Watchdog        string    `toml:"watchdog"`         // absolute path of a device; empty for none
	WatchdogTimeout Duration  `toml:"watchdog_timeout"` // whole seconds, 5 s to 5 min
	OnLoss          string    `toml:"on_loss"`          // OnLossKill, OnLossFreeze or OnLossIgnore, for whom VM does not name
	VM              []GuardVM `toml:"vm"`
}

// GuardVM is a table [[guard.vm]]: what is wanted for one virtual machine.
type GuardVM struct {
	Name   string `toml:"name"` // one of Name and UUID
	UUID   string `toml:"uuid"` // as libvirt writes it
	OnLoss string `toml:"on_loss"`
}

// Ignored are the virtual machines that are not stopped when this host loses the cluster, as the configuration names them, each in
// quotes; "all others" are those that it does not name.
func (g Guard) Ignored() (list []string) {
	if g.OnLoss == OnLossIgnore {
		list = append(list, "all others")
	}
	for _, vm := range g.VM {
		if vm.OnLoss == OnLossIgnore {
			list = append(list, strconv.Quote(cmp.Or(vm.Name, vm.UUID)))
		}
	}
	slices.Sort(list)
	return list
}

func defaultGuard() Guard {
	return Guard{
		Mode: GuardAuto, Grace: Duration(10 * time.Second), HoldOff: Duration(time.Minute),
		WatchdogTimeout: Duration(10 * time.Second), OnLoss: OnLossKill,
	}
}

// maxGuardVMs bounds how many can be named.
const maxGuardVMs = 10_000

var uuidText = lazyregexp.New(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (g *Guard) problems() (list []problem) {
	add := func(key, format string, args ...any) {
		list = append(list, problem{key, fmt.Sprintf(format, args...)})
	}
	oneOf := func(key, value string, allowed ...string) {
		for _, a := range allowed {
			if a == value {
				return
			}
		}
		add(key, "%q is not known: use one of %s", value, quoted(allowed))
	}
	within := func(key string, value Duration, least, most time.Duration) {
		if d := time.Duration(value); d < least || d > most {
			add(key, "%v is out of range: use %v to %v", d, least, most)
		}
	}
	oneOf("guard.mode", g.Mode, GuardAuto, GuardFencing, GuardFreeze, GuardOff)
	oneOf("guard.on_loss", g.OnLoss, OnLossKill, OnLossFreeze, OnLossIgnore)
	within("guard.grace", g.Grace, 0, 10*time.Minute)
	within("guard.hold_off", g.HoldOff, time.Second, time.Hour)
	within("guard.watchdog_timeout", g.WatchdogTimeout, 5*time.Second, 5*time.Minute)
	if time.Duration(g.WatchdogTimeout)%time.Second != 0 {
		add("guard.watchdog_timeout", "%v is no number of whole seconds, which is what a watchdog takes: write for example \"10s\"", g.WatchdogTimeout)
	}
	if g.HoldOff <= g.Grace {
		add("guard.hold_off", "%v is not longer than guard.grace (%v): a lost host would go on while others have its disks; docs/guard.md says what is long enough", g.HoldOff, g.Grace)
	}
	if w := g.Watchdog; w != "" && (!filepath.IsAbs(w) || strings.ContainsRune(w, 0)) {
		add("guard.watchdog", "%q is not an absolute path: write for example \"/dev/watchdog\", or \"\" for none", w)
	}
	if len(g.VM) > maxGuardVMs {
		add("guard.vm", "%d virtual machines are named, and %d are the most: set guard.on_loss for all others", len(g.VM), maxGuardVMs)
		return list
	}
	for i, vm := range g.VM {
		who := fmt.Sprintf("table %d: ", i+1)
		switch {
		case (vm.Name == "") == (vm.UUID == ""):
			add("guard.vm", "%swrite either name or uuid", who)
		case vm.UUID != "" && !uuidText().MatchString(strings.ToLower(vm.UUID)):
			add("guard.vm", "%suuid %q is none: it has 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12", who, vm.UUID)
		}
		switch vm.OnLoss {
		case OnLossKill, OnLossFreeze, OnLossIgnore:
		default:
			add("guard.vm", "%son_loss %q is not known: use one of %s", who, vm.OnLoss, quoted([]string{OnLossKill, OnLossFreeze, OnLossIgnore}))
		}
	}
	return list
}
