package doctor

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlockd/vmlockd/internal/config"
)

// systemd says that it runs this host (sd_booted(3)).
func (x *exam) systemd() bool { return exists(x.System, "/run/systemd/system") }

// units looks at the units of vmlockd and of virtlockd.
func (x *exam) units() {
	if !x.systemd() {
		return
	}
	x.virtlockdUnit()
	name := x.unitName()
	u, err := readUnit(x.System, name)
	if err != nil {
		x.unchecked(name, err, "the unit of vmlockd")
		return
	}
	if u.path == "" {
		x.find(idUnitBoot, "systemd", "install a unit as in the README of vmlockd, then systemctl enable --now vmlockd", "there is no unit vmlockd.service: after the next boot no virtual machine can start")
		return
	}
	on, err := enabled(x.System, name)
	if err != nil {
		x.unchecked(name, err, "whether it is started at boot")
	} else if !on {
		x.find(idUnitBoot, u.path, "systemctl enable "+name, "%s is not started at boot: after the next one no virtual machine can start", name)
	} else if x.backend == config.BackendCluster {
		x.pacemakerUnit(name, u)
	}
	mode, _ := u.last("Service.KillMode")
	if mode.text != "process" && mode.text != "none" {
		if mode.text == "" {
			mode.text = "control-group, the default"
		}
		x.find(idUnitKillMode, u.path, "KillMode=process in the section [Service], then systemctl daemon-reload",
			"KillMode is %s: when the unit is stopped, systemd also ends the process that keeps the locks of virtual machines", mode.text)
	}
	if u.names("Service.RuntimeDirectory", path.Base(x.cfg.RunDir)) && strings.HasPrefix(x.cfg.RunDir, "/run/") {
		if keep, _ := u.last("Service.RuntimeDirectoryPreserve"); !slices.Contains([]string{"yes", "true", "1", "on"}, keep.text) {
			x.find(idUnitRuntime, u.path, "RuntimeDirectoryPreserve=yes in the section [Service], then systemctl daemon-reload",
				"systemd removes %s when the unit is stopped, and the next start does not know which locks it had", x.cfg.RunDir)
		}
	}
}

// unitName is the unit that the running daemon is in.
func (x *exam) unitName() string {
	const usual = "vmlockd.service"
	daemons := x.daemons()
	if len(daemons) == 0 {
		return usual
	}
	text, err := x.System.ReadFile(daemons[0].dir()+"/cgroup", maxProc)
	if err != nil {
		return usual
	}
	for line := range strings.Lines(string(text)) {
		name := path.Base(strings.TrimSpace(line))
		if strings.HasSuffix(name, ".service") && strings.Contains(line, ":/system.slice/") && !strings.Contains(name, "@") {
			return name
		}
	}
	return usual
}

// virtlockdUnit looks at whether systemd would listen on libvirt's socket in the
// name of virtlockd. Debian 12's libvirtd.service requires virtlockd.socket, so
// that it is not enough to disable it: systemd takes the path away from vmlockd
// when libvirtd is started the next time.
func (x *exam) virtlockdUnit() {
	const name = "virtlockd.socket"
	u, err := readUnit(x.System, name)
	if err != nil {
		x.unchecked(name, err, "whether systemd starts virtlockd")
		return
	}
	if u.path == "" || u.masked || !slices.ContainsFunc(u.values["Socket.ListenStream"], func(s setting) bool { return s.text == x.cfg.Socket || sameSocket(x.System, s.text) }) {
		return
	}
	if s, ok := u.last("Socket.Service"); ok && s.text == x.unitName() {
		return // it is vmlockd that gets the connections
	}
	if x.left(u) {
		return // the drop-in of our package, while vmlockd's unit is enabled
	}
	on, err := enabled(x.System, name)
	if err != nil {
		x.unchecked(name, err, "whether it is started at boot")
	}
	if on {
		x.find(idVirtlockdUnit, u.path, "systemctl disable --now virtlockd.socket virtlockd-admin.socket virtlockd",
			"%s is enabled: at the next boot systemd listens on %s for virtlockd, and vmlockd cannot", name, x.cfg.Socket)
	}
	for _, service := range []string{"libvirtd.service", "virtqemud.service"} {
		l, err := readUnit(x.System, service)
		if err != nil {
			x.unchecked(service, err, "whether it starts virtlockd")
			continue
		}
		if l.masked {
			continue
		}
		for _, key := range []string{"Requires", "Wants", "BindsTo", "Requisite", "Upholds"} {
			if i := slices.IndexFunc(l.values["Unit."+key], func(s setting) bool { return slices.Contains(strings.Fields(s.text), name) }); i >= 0 {
				at := l.path + ":" + strconv.Itoa(l.values["Unit."+key][i].line)
				x.find(idVirtlockdUnit, at, "systemctl edit --full "+service+": remove "+key+"="+name+", then systemctl disable --now "+name,
					"%s has %s=%s: each start of it makes systemd listen on %s for virtlockd, in vmlockd's place", service, key, name, x.cfg.Socket)
			}
		}
	}
}

// left reports whether systemd leaves a unit out because a path exists: a condition
// that is not met is no failure for those that require the unit (systemd.unit(5)).
func (x *exam) left(u unit) bool {
	return slices.ContainsFunc(u.values["Unit.ConditionPathExists"], func(s setting) bool {
		p, negated := strings.CutPrefix(s.text, "!")
		return negated && exists(x.System, strings.TrimSpace(p))
	})
}
