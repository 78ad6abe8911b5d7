package doctor

import (
	"io/fs"
	"strconv"
	"syscall"
	"time"
)

const socketLine = "0000000012345678: 00000002 00000000 00010000 0001 01   749 /run/libvirt/virtlockd-sock\n"

// gone ends vmlockd.
func gone(w *world) {
	w.remove("/proc/739")
	w.replace("/proc/net/unix", "00000000cf3eddee: 00000002 00000000 00010000 0001 01   193 /run/libvirt/virtlockd-sock\n", "")
	w.daemonErr = errTest
}

// noVMs ends all virtual machines.
func noVMs(w *world) { w.remove("/run/libvirt/qemu") }

var daemonFaults = []fault{
	{"mistakes in vmlockd.toml", true, func(w *world) {
		w.write("/etc/vmlockd/vmlockd.toml", "backend = \"local\"\nmax_clients = 0\nbackand = 1\n")
	}, []string{idConfig, idConfig}, "vmlockd.toml:2", "out of range", "--check-config"},
	{"vmlockd.toml is no TOML", true, func(w *world) { w.write("/etc/vmlockd/vmlockd.toml", "backend\n") }, []string{idConfig}, "vmlockd.toml:1", "", ""},
	{"vmlockd.toml cannot be read", true, func(w *world) { w.at("/etc/vmlockd/vmlockd.toml").err = fs.ErrPermission }, []string{idUnchecked}, "vmlockd.toml", "permission", "as root"},
	{"vmlockd.toml that was named is absent", true, func(w *world) { w.remove("/etc/vmlockd/vmlockd.toml"); w.named = true }, []string{idUnchecked}, "vmlockd.toml", "", ""},
	{"vmlockd.toml was changed", false, func(w *world) { w.replace("/etc/vmlockd/vmlockd.toml", "cluster", "local") }, []string{idConfigStale}, "vmlockd.toml", `"local"`, "restart"},
	{"another socket", true, func(w *world) {
		w.replace("/etc/vmlockd/vmlockd.toml", libvirtSocket, "/run/vmlockd/lock.sock")
		w.replace("/proc/net/unix", libvirtSocket, "/run/vmlockd/lock.sock")
		w.daemon.Socket = "/run/vmlockd/lock.sock"
		w.write("/run/vmlockd/lock.sock", "")
		w.remove("/lib/systemd/system/virtlockd.socket")
	}, []string{idSocket}, "vmlockd.toml", libvirtSocket, "socket ="},

	{"vmlockd does not run", true, func(w *world) { gone(w); noVMs(w) }, []string{idNotRunning}, libvirtSocket, "does not run", "enable --now vmlockd"},
	{"vmlockd does not run, and virtual machines do", true, gone, []string{idNotRunning, idUnchecked}, runningDir, "whether the disks", ""},
	{"vmlockd does not answer", true, func(w *world) { w.daemonErr = errTest; noVMs(w) }, []string{idNoAnswer}, "739", "it is broken", "739"},
	{"vmlockd may not be asked", true, func(w *world) { w.daemonErr = fs.ErrPermission; noVMs(w) }, []string{idUnchecked}, "vmlockd", "how it is", "as root"},
	{"virtlockd took the socket", false, func(w *world) {
		w.write("/proc/749/comm", "virtlockd\n")
		w.link("/proc/749/fd/7", "socket:[749]")
		w.write("/proc/net/unix", w.at("/proc/net/unix").data+socketLine)
	}, []string{idOtherDaemon}, "virtlockd (process 749)", libvirtSocket, "disable --now virtlockd.socket"},
	{"systemd listens in vmlockd's place", true, func(w *world) {
		gone(w)
		noVMs(w)
		w.link("/proc/1/fd/44", "socket:[749]")
		w.write("/proc/net/unix", w.at("/proc/net/unix").data+socketLine)
	}, []string{idOtherDaemon, idNotRunning}, "systemd (process 1)", "", ""},
	{"something else listens", true, func(w *world) {
		w.write("/proc/800/comm", "socat\n")
		w.link("/proc/800/fd/7", "socket:[749]")
		w.write("/proc/net/unix", w.at("/proc/net/unix").data+socketLine)
	}, []string{idOtherDaemon}, "socat (process 800)", "", "end the process 800"},
	{"it cannot be seen who listens", true, func(w *world) {
		w.link("/proc/739/fd/10", "/dev/null")
		w.write("/proc/756/fd", "")
		w.at("/proc/756/fd").err = fs.ErrPermission
	}, []string{idUnchecked}, libvirtSocket, "which program", "as root"},
	{"sockets cannot be seen", true, func(w *world) { w.at("/proc/net/unix").err = errTest }, []string{idUnchecked}, "/proc/net/unix", "it is broken", ""},
	{"the socket was removed", true, func(w *world) { w.remove(libvirtSocket) }, []string{idSocketMissing}, libvirtSocket, "removed", ""},
	{"the socket was replaced", true, func(w *world) { w.at(libvirtSocket).err = syscall.ECONNREFUSED }, []string{idSocketMissing}, libvirtSocket, "replaced", ""},
	{"nobody gets a connection", true, func(w *world) { w.at(libvirtSocket).err = syscall.EAGAIN }, []string{idUnchecked}, libvirtSocket, "whether libvirt can connect", ""},
	{"nobody listens", true, func(w *world) { w.write("/proc/net/unix", "Num RefCount\n") }, []string{idSocketMissing}, libvirtSocket, "nobody", ""},
	{"the program was replaced", true, func(w *world) { w.link("/proc/739/exe", "/usr/local/sbin/vmlockd (deleted)") }, []string{idBinaryReplaced}, "739", "/usr/local/sbin/vmlockd", "reload"},
	{"few open files are left", true, func(w *world) {
		w.replace("/proc/741/limits", "65536                65536", "16                   65536")
		for i := range 13 {
			w.link("/proc/741/fd/"+strconv.Itoa(i+10), "/srv/vm/x.img")
		}
	}, []string{idNoFile}, "741", "14 of 16", "LimitNOFILE"},
	{"limits cannot be read", true, func(w *world) { w.write("/proc/739/limits", "nonsense\n") }, []string{idUnchecked}, "739", "how many files", ""},
	{"run_dir is open to a group", true, func(w *world) { w.at("/run/vmlockd").info.Mode = 0o750 }, []string{idRunDirOpen}, "/run/vmlockd", "0750", "chmod 700"},
	{"run_dir is another user's", true, func(w *world) { w.at("/run/vmlockd").info.UID = 1000 }, []string{idRunDirOpen}, "/run/vmlockd", "user 1000", "chown"},
	{"run_dir was removed", true, func(w *world) { w.remove("/run/vmlockd") }, []string{idRunDirMissing}, "/run/vmlockd", "removed", ""},
	{"run_dir is on a disk", true, func(w *world) { w.at("/run/vmlockd").info.Tmpfs = false }, []string{idRunDirDisk}, "/run/vmlockd", "tmpfs", "run_dir ="},
	{"run_dir cannot be seen", true, func(w *world) { w.at("/run/vmlockd").err = fs.ErrPermission }, []string{idUnchecked}, "/run/vmlockd", "", ""},
	{"the journal was damaged", true, func(w *world) { w.write("/run/vmlockd/journal-local/journal.damaged-0badcafe-512", "") }, []string{idJournal}, "journal.damaged-0badcafe-512", "", ""},
	{"drained", true, func(w *world) {
		w.daemon.Draining = &Draining{Since: time.Unix(1e9, 0), By: "alice", Reason: "new memory"}
	}, []string{idDraining}, "", "2001-09-09T01:46:40Z by alice: new memory", "drain --undo"},
	{"a warning of the daemon", true, func(w *world) {
		w.daemon.Warnings = []DaemonWarning{{"novelty", "something new"}, {"draining", "told otherwise"}}
	}, []string{idDaemonWarning}, "novelty", "something new", ""},

	{"no unit", true, func(w *world) { w.remove("/etc/systemd/system/vmlockd.service") }, []string{idUnitBoot}, "systemd", "no unit", ""},
	{"not enabled", true, func(w *world) { w.remove("/etc/systemd/system/multi-user.target.wants/vmlockd.service") }, []string{idUnitBoot}, "vmlockd.service", "boot", "systemctl enable vmlockd.service"},
	{"KillMode by a drop-in", true, func(w *world) {
		w.write("/etc/systemd/system/vmlockd.service.d/50-kill.conf", "[Service]\nKillMode=mixed\n")
	}, []string{idUnitKillMode}, "vmlockd.service", "mixed", "KillMode=process"},
	{"KillMode by default", true, func(w *world) { w.replace("/etc/systemd/system/vmlockd.service", "KillMode=process\n", "") }, []string{idUnitKillMode}, "", "control-group", ""},
	{"RuntimeDirectoryPreserve", true, func(w *world) {
		w.replace("/etc/systemd/system/vmlockd.service", "Preserve=yes", "Preserve=restart")
	}, []string{idUnitRuntime}, "", "/run/vmlockd", "RuntimeDirectoryPreserve=yes"},
	{"virtlockd.socket is left out only while something else exists", true, func(w *world) {
		w.write("/lib/systemd/system/virtlockd.socket.d/50-vmlockd.conf", "[Unit]\nConditionPathExists=!/etc/systemd/system/multi-user.target.wants/other.service\n")
		w.link("/etc/systemd/system/sockets.target.wants/virtlockd.socket", "/lib/systemd/system/virtlockd.socket")
	}, []string{idVirtlockdUnit}, "virtlockd.socket", "enabled", "disable --now virtlockd.socket"},
	{"a unit cannot be read", true, func(w *world) { w.at("/etc/systemd/system/vmlockd.service").err = errTest }, []string{idUnchecked}, "vmlockd.service", "", ""},
	{"virtlockd.socket is enabled", true, func(w *world) {
		w.link("/etc/systemd/system/sockets.target.wants/virtlockd.socket", "/lib/systemd/system/virtlockd.socket")
	}, []string{idVirtlockdUnit}, "virtlockd.socket", "enabled", "disable --now virtlockd.socket"},
	{"libvirtd.service requires virtlockd.socket", true, func(w *world) {
		w.replace("/etc/systemd/system/libvirtd.service", "Requires=virtlogd.socket\n", "Requires=virtlogd.socket\nRequires=virtlockd.socket\n")
	}, []string{idVirtlockdUnit}, "libvirtd.service:4", "Requires=virtlockd.socket", "edit --full"},
}
