package doctor

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

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
	if x.endless(g.Watchdog) && !slices.Contains(x.armed(), g.Watchdog) {
		x.find(idWatchdog, g.Watchdog, "options softdog nowayout=0 in /etc/modprobe.d, or the same for the driver that it has, and load that anew (docs/guard.md)",
			"its driver never stops it again once it was opened (nowayout): vmlockd leaves it alone, as stopping vmlockd would reset this host, and this host is not reset if vmlockd hangs")
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

// watchdogStays looks for watchdogs that vmlockd has armed, whether or not the configuration names them now, and that nobody can stop any more.
func (x *exam) watchdogStays() {
	for _, device := range x.armed() {
		if !x.endless(device) {
			continue
		}
		text := "vmlockd has armed it, and its driver never stops it again (nowayout): vmlockd feeds it, and if it is stopped, or crashes and is not started again in time, this host is reset with all that runs on it"
		if x.silent != nil {
			text = "vmlockd has armed it, and its driver never stops it again (nowayout): unless vmlockd runs, this host is reset with all that runs on it"
		}
		x.find(idDogStays, device, "before you stop vmlockd, move the virtual machines away; then reboot this host, with options softdog nowayout=0 in /etc/modprobe.d, "+
			"or the same for the driver that it has, or with guard.watchdog left empty (docs/guard.md)", "%s", text)
	}
}

// armed are the watchdogs that the guard has noted to be armed (internal/guard, Saved), in this boot.
func (x *exam) armed() []string {
	boot, err := x.System.ReadFile("/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return nil // then vmlockd does not start either
	}
	file := sysPath(x.cfg.RunDir, "guard.json")
	text, err := x.System.ReadFile(file, 16<<20)
	if err != nil {
		if !absent(err) {
			x.unchecked(file, err, "whether a watchdog is armed")
		}
		return nil
	}
	var saved struct {
		Boot   string   `json:"boot"`
		Armed  bool     `json:"armed"`
		Device string   `json:"device"`
		Left   []string `json:"left"`
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		x.unchecked(file, err, "whether a watchdog is armed")
		return nil
	}
	if saved.Boot != strings.TrimSpace(string(boot)) {
		return nil
	}
	if saved.Armed && saved.Device != "" {
		saved.Left = append(saved.Left, saved.Device)
	}
	return saved.Left
}

// endless reports whether a watchdog is known never to be stopped again once it was opened (Documentation/ABI/testing/sysfs-class-watchdog).
func (x *exam) endless(device string) bool {
	b, err := x.System.ReadFile(sysPath("/sys/class/watchdog", path.Base(deviceName(x.System, device)), "nowayout"), 16)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// sameDevice reports whether two paths name one watchdog.
func sameDevice(s System, a, b string) bool { return deviceName(s, a) == deviceName(s, b) }

// deviceName is the one name of a watchdog. /dev/watchdog is the first of them, /dev/watchdog0
// (Documentation/watchdog/watchdog-api.rst).
func deviceName(s System, p string) string {
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
