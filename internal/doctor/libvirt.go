package doctor

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

const qemuConf = "/etc/libvirt/qemu.conf"

// lockdConf is what libvirt's plug-in for lock daemons is told, by the file that
// is named after the lock manager.
type lockdConf struct {
	path  string
	known bool
	// fileDir, lvmDir and scsiDir are the lockspaces for disks of these kinds, "" for
	// the default lockspace, in which a lock has the name of the disk's path.
	fileDir, lvmDir, scsiDir string
}

// libvirtConfiguration looks at whether libvirt asks for locks at all.
func (x *exam) libvirtConfiguration() {
	conf, ok := x.virConf(qemuConf)
	if !ok {
		return
	}
	s, set := conf["lock_manager"]
	const remedy = `lock_manager = "lockd" in ` + qemuConf + `, then systemctl restart libvirtd (or virtqemud)`
	switch {
	case !set || s.text == "" || s.text == "nop":
		where := qemuConf
		if set {
			where = fmt.Sprintf("%s:%d", qemuConf, s.line)
		}
		x.find(idLockManager, where, remedy, "lock_manager is not set: libvirt asks for no lock, and two virtual machines can write one disk")
		return
	case !x.speaksLockd(s.text):
		x.find(idLockManagerOff, fmt.Sprintf("%s:%d", qemuConf, s.line), remedy,
			"lock_manager is %q: libvirt asks another lock manager, and vmlockd knows nothing of its locks", s.text)
		return
	}
	x.loaded(s.text)
	x.libvirt.path = "/etc/libvirt/qemu-" + s.text + ".conf"
	lockd, ok := x.virConf(x.libvirt.path)
	if !ok {
		return
	}
	x.libvirt.known = true
	x.libvirt.fileDir, x.libvirt.lvmDir, x.libvirt.scsiDir = lockd["file_lockspace_dir"].text, lockd["lvm_lockspace_dir"].text, lockd["scsi_lockspace_dir"].text
	if auto := lockd["auto_disk_leases"]; auto.text == "0" {
		at := fmt.Sprintf("%s:%d", x.libvirt.path, auto.line)
		x.find(idAutoLeases, at, "auto_disk_leases = 1, then systemctl restart libvirtd (or virtqemud)",
			"auto_disk_leases is 0: libvirt asks for locks of <lease> elements only, and for none of a disk")
		if need := lockd["require_lease_for_disks"]; need.text == "0" {
			x.find(idRequireLease, fmt.Sprintf("%s:%d", x.libvirt.path, need.line), "auto_disk_leases = 1, or require_lease_for_disks = 1",
				"require_lease_for_disks is 0 too: virtual machines without a <lease> start with no lock at all")
		}
	}
	x.lockspaceNames()
}

// virConf reads a configuration file of libvirt; one that is absent has no settings.
func (x *exam) virConf(p string) (virConf, bool) {
	text, err := x.System.ReadFile(p, maxConf)
	if absent(err) {
		return virConf{}, true
	}
	var conf virConf
	if err == nil {
		conf, err = parseVirConf(text)
	}
	if err != nil {
		x.unchecked(p, err, "what libvirt is told about locks")
		return nil, false
	}
	return conf, true
}

// speaksLockd says that a lock manager is libvirt's plug-in for lock daemons, also
// under another name: it is found by the name of its file.
func (x *exam) speaksLockd(name string) bool {
	if name == "lockd" {
		return true
	}
	if strings.ContainsAny(name, "/\x00") {
		return false
	}
	for _, lib := range x.libDirs() {
		if to, err := x.System.Readlink(sysPath(lib, "libvirt/lock-driver", name+".so")); err == nil && path.Base(to) == "lockd.so" {
			return true
		}
	}
	return false
}

// libDirs is where libvirt's modules may be.
func (x *exam) libDirs() []string {
	dirs := []string{"/usr/lib64", "/usr/lib"}
	names, err := list(x.System, "/usr/lib")
	if err != nil {
		return dirs
	}
	for _, n := range names {
		if strings.Contains(n, "-linux-gnu") {
			dirs = append(dirs, "/usr/lib/"+n)
		}
	}
	return dirs
}

// loaded looks at whether the running libvirt has loaded the plug-in. It does so
// when it starts, so that a change of qemu.conf alone changes nothing.
func (x *exam) loaded(name string) {
	for _, p := range x.called("libvirtd", "virtqemud") {
		text, err := x.System.ReadFile(p.dir()+"/maps", maxProc)
		if absent(err) {
			continue // it has ended
		}
		if err != nil {
			x.unchecked(p.String(), err, "whether it uses the lock manager")
			continue
		}
		if !bytes.Contains(text, []byte("/libvirt_driver_qemu.so")) {
			continue // it runs other virtual machines
		}
		if !bytes.Contains(text, []byte("/lock-driver/"+name+".so")) && !bytes.Contains(text, []byte("/lock-driver/lockd.so")) {
			x.find(idLibvirtStale, p.String(), "systemctl restart "+p.comm+": virtual machines go on; then virsh suspend and virsh resume each that runs, which makes libvirt ask for its locks",
				"it was started before lock_manager was set, and asks for no lock")
		}
	}
}

// lockspaceNames compares how this host's libvirt names locks with how the locks
// of other hosts are named: one disk under two names has two locks.
func (x *exam) lockspaceNames() {
	seen := map[string]bool{}
	for _, h := range x.daemon.Holders {
		if h.Here {
			continue
		}
		var dir string
		switch {
		case h.Lockspace == "" && strings.HasPrefix(h.Resource, "/"):
		case strings.HasPrefix(h.Lockspace, "/") && isSHA256(h.Resource):
			dir = h.Lockspace
		default:
			continue // a <lease>, or a disk by another id
		}
		if dir == x.libvirt.fileDir || seen[h.Node+dir] {
			continue
		}
		seen[h.Node+dir] = true
		x.find(idLockspaceDir, x.libvirt.path, "the same file_lockspace_dir, lvm_lockspace_dir and scsi_lockspace_dir on all hosts, or on none; then systemctl restart libvirtd",
			"file_lockspace_dir is %q here, and host %s has locks as with %q: the same disk gets two locks that know nothing of each other", x.libvirt.fileDir, h.Node, dir)
	}
}

// isSHA256 says that a name is what libvirt makes of a path for file_lockspace_dir.
func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
