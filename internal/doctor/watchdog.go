package doctor

import (
	"fmt"
	"path"
	"strconv"

	"github.com/vmlockd/vmlockd/internal/config"
)

// dogPrograms are programs that keep a watchdog open for as long as they run, with what is to be done where vmlockd is
// to have the same one. The names are those of processes, which have 15 bytes at most.
var dogPrograms = []struct{ name, remedy string }{
	{"sbd", "leave guard.watchdog empty in %s, as sbd resets a host that loses the cluster; or give vmlockd a device of its own (docs/fencing.md)"},
	{"wdmd", "stop sanlock and wdmd if nothing but vmlockd is to lock disks here, or leave guard.watchdog empty in %s"},
	{"watchdog-mux", "leave guard.watchdog empty in %s, or give vmlockd a device of its own (docs/fencing.md)"},
	{"watchdog", "stop the service watchdog, or leave guard.watchdog empty in %s"},
}

// watchdog looks at whether the guard can have its watchdog. It opens it only while locks are held, so that until then
// vmlockd itself has nothing to say about it.
func (x *exam) watchdog() {
	g := x.cfg.Guard
	if g.Watchdog == "" || g.Mode == config.GuardOff || g.Mode == config.GuardFencing {
		return
	}
	if _, err := x.System.Stat(g.Watchdog); err != nil {
		if !absent(err) {
			x.unchecked(g.Watchdog, err, "the watchdog")
			return
		}
		x.find(idWatchdog, g.Watchdog, "load the driver of the board's watchdog, or modprobe softdog; ls /dev/watchdog* shows what there is",
			"guard.watchdog names a device that does not exist: this host is not reset if vmlockd hangs")
		return
	}
	for _, program := range dogPrograms {
		for _, p := range x.called(program.name) {
			has, err := x.hasOpen(p, g.Watchdog)
			if err != nil {
				x.unchecked(p.String(), err, "whether it has the watchdog "+g.Watchdog)
			}
			if has {
				x.find(idWatchdog, p.String(), fmt.Sprintf(program.remedy, x.Config),
					"it has %s, which guard.watchdog names: vmlockd leaves it alone, and this host is not reset if vmlockd hangs", g.Watchdog)
			}
		}
	}
}

// hasOpen reports whether a process has a file open. One that has ended has not.
func (x *exam) hasOpen(p process, file string) (bool, error) {
	dir := p.dir() + "/fd"
	names, err := x.System.List(dir, maxOpenFiles)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		if to, err := x.System.Readlink(sysPath(dir, n)); err == nil && sameDevice(x.System, to, file) {
			return true, nil
		}
	}
	return false, nil
}

// sameDevice reports whether two paths name one watchdog. /dev/watchdog is the first of them, /dev/watchdog0
// (Documentation/watchdog/watchdog-api.rst).
func sameDevice(s System, a, b string) bool {
	first := func(p string) string {
		if to, err := s.Readlink(p); err == nil {
			if !path.IsAbs(to) {
				to = sysPath(path.Dir(p), to)
			}
			p = to
		}
		if p == "/dev/watchdog" {
			return "/dev/watchdog0"
		}
		return p
	}
	return first(a) == first(b)
}
