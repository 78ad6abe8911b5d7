package doctor

import (
	"io/fs"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

const coro = "/etc/corosync/corosync.conf"

// dog has the guard of a host without fencing use a watchdog.
func dog(w *world, device string) {
	noFencing(w)
	w.daemon.Guarded = true
	w.replace("/etc/vmlockd/vmlockd.toml", "backend =", "guard.watchdog = \""+device+"\"\nbackend =")
	w.write(device, "")
}

// armed is what a guard has noted of this boot, and what sysfs says of the first watchdog.
func armed(w *world, nowayout, notes string) {
	w.write("/sys/class/watchdog/watchdog0/nowayout", nowayout)
	w.write("/proc/sys/kernel/random/boot_id", "b\n")
	w.write("/run/vmlockd/guard.json", `{"boot":"b",`+notes+`}`)
}

// lose takes nodes out of the cluster.
func lose(w *world, fence bool, ids ...int) {
	w.status.Nodes = slices.Clone(w.status.Nodes)
	for i := range w.status.Nodes {
		if n := &w.status.Nodes[i]; slices.Contains(ids, n.NodeID) {
			n.Member, n.NeedFencing = false, fence
		}
	}
}

// waits has dlm_controld, which ignores signals as in a mask of /proc, wait for messages of the nodes 1, 2 and 3, with these flags.
func waits(w *world, ignored string, flags ...controld.NodeFlags) {
	w.write("/proc/735/status", "Name:\tdlm_controld\nSigBlk:\tffffffffffffffff\nSigIgn:\t"+ignored+"\nSigCgt:\tffffffffffffffff\n")
	w.daemon.Lockspace, w.daemon.WaitsFor = "stopped", "somebody"
	w.change = controld.Change{Members: len(flags), Seq: 7, CombinedSeq: 3, WaitMessages: true}
	for i, f := range flags {
		w.members = append(w.members, controld.Node{NodeID: i + 1, Flags: f | controld.Member})
	}
}

func noFencing(w *world) {
	w.write("/etc/dlm/dlm.conf", "enable_fencing=0\n")
	w.conf.EnableFencing = false
}

var clusterFaults = []fault{
	{"no module", false, func(w *world) { w.remove("/sys/module/dlm") }, []string{idModule}, "/sys/module/dlm", "not loaded", "modprobe dlm"},
	{"the module is not loaded at boot", false, func(w *world) {
		w.remove("/etc/modules-load.d/dlm.conf")
		w.write("/lib/systemd/system/dlm.service", "[Service]\nExecStart=/usr/sbin/dlm_controld\n")
	}, []string{idModuleBoot}, "/etc/modules-load.d", "boot", "echo dlm > /etc/modules-load.d/dlm.conf"},
	{"what is loaded at boot cannot be seen", false, func(w *world) {
		w.remove("/etc/modules-load.d")
		w.write("/etc/modules-load.d", "")
		w.at("/etc/modules-load.d").err = errTest
	}, []string{idUnchecked}, "/etc/modules-load.d", "it is broken", ""},
	{"corosync and dlm_controld do not run", false, func(w *world) {
		w.remove("/proc/708")
		w.remove("/proc/735")
		w.statusErr = controld.ErrNotRunning
		w.daemon.Lockspace = lockspaceDead
	}, []string{idCorosync, idControld, idReboot}, "corosync", "rebooted", "systemctl start corosync"},
	{"dlm_controld never ran", false, func(w *world) {
		w.remove("/proc/735")
		w.remove("/sys/kernel/dlm")
		w.statusErr = controld.ErrNotRunning
		gone(w)
		noVMs(w)
	}, []string{idControld, idNotRunning}, "dlm_controld", "does not run", "systemctl start dlm"},
	{"dlm_controld hangs", false, func(w *world) { w.statusErr = controld.ErrNoAnswer }, []string{idControldMum}, "dlm_controld", "does not answer", "dlm_tool status"},
	{"dlm_controld was restarted", false, func(w *world) { w.known = controld.ErrNoLockspace }, []string{idReboot}, "/sys/kernel/dlm/vmlockd", "dlm_controld ended", "reboot"},
	{"dlm_controld does not say whether it knows the lockspace", false, func(w *world) { w.known = errTest }, []string{idUnchecked}, "dlm_controld", "lockspace vmlockd", ""},
	{"corosync is not started at boot", false, func(w *world) { w.remove("/etc/systemd/system/multi-user.target.wants/corosync.service") }, []string{idClusterBoot}, "corosync.service", "", "systemctl enable corosync.service"},
	{"no quorum", false, func(w *world) {
		lose(w, true, 2, 3)
		w.status.Quorate = false
		w.daemon.Lockspace, w.daemon.WaitsFor = "stopped", "quorum"
	}, []string{idNoQuorum}, "corosync", "only the nodes 1", "corosync-quorumtool"},
	{"no quorum, and a quorum device", false, func(w *world) {
		quorumDevice(w, "ffsplit", 1)
		lose(w, true, 2, 3)
		w.status.Quorate = false
		w.daemon.Lockspace, w.daemon.WaitsFor = "stopped", "quorum"
	}, []string{idNoQuorum}, "corosync", "only the nodes 1", "corosync-qdevice-tool"},
	{"a node waits for fencing", false, func(w *world) {
		lose(w, true, 3)
		w.daemon.Lockspace, w.daemon.WaitsFor = "stopped", "fencing"
	}, []string{idFencingWait}, "node 3", "must be fenced", "fence_ack 3"},
	{"a node is absent", false, func(w *world) { lose(w, false, 3) }, []string{idNodeAbsent}, "node 3", "", ""},
	{"the lockspace is stopped", false, func(w *world) { w.daemon.Lockspace, w.daemon.WaitsFor = "stopped", "the others" }, []string{idStopped}, "lockspace vmlockd", "the others", ""},
	{"dlm_controld has refused its own message", false, func(w *world) {
		waits(w, "0000000000001000", 0, controld.Started, controld.Started)
	}, []string{idStuck}, "lockspace vmlockd", "its own message", "reboot"},
	{"corosync delivers nothing", false, func(w *world) {
		waits(w, "0000000000001000", 0, controld.Started, controld.Started)
		w.daemon.Lost = "corosync has delivered nothing for 9s"
	}, []string{idStopped}, "lockspace vmlockd", "delivered nothing for 9s", "journalctl -u corosync"},
	{"dlm_controld has refused the message of another one", false, func(w *world) {
		waits(w, "0000000000001000", controld.Started, controld.Disallowed, 0)
	}, []string{idStuck}, "lockspace vmlockd", "refused the message of node 2", "then reboot it, at the same time"},
	{"dlm_controld is about to have its own message", false, func(w *world) {
		waits(w, "0000000000001000", 0, controld.Started, controld.Started)
		w.later = func() { w.members[0].Flags |= controld.Started }
	}, []string{idStopped}, "lockspace vmlockd", "somebody", "goes on by itself"},
	{"one change follows another", false, func(w *world) {
		waits(w, "0000000000001000", 0, controld.Started, controld.Started)
		w.later = func() { w.change.Seq++ }
	}, []string{idStopped}, "lockspace vmlockd", "somebody", "goes on by itself"},
	{"the change is over", false, func(w *world) {
		waits(w, "0000000000001000", controld.Started, controld.Disallowed, controld.Started)
		w.later = func() { w.change = controld.Change{} }
	}, []string{idStopped}, "lockspace vmlockd", "somebody", "goes on by itself"},
	{"hosts that were separated have met again", false, func(w *world) {
		waits(w, "0000000000001000", controld.Started, controld.Disallowed, controld.Disallowed)
		w.status.MergeWait = true
	}, []string{idStopped}, "lockspace vmlockd", "somebody", "choose the side to keep"},
	{"dlm_controld has refused the message of a host that is about to go", false, func(w *world) {
		waits(w, "0000000000001000", controld.Started, controld.Disallowed, controld.Started)
	}, []string{idStuck}, "lockspace vmlockd", "unless that node goes", "look again in half a minute"},
	{"dlm_controld waits for others", false, func(w *world) {
		waits(w, "fffffffffffff000", controld.Started, 0, 0)
	}, []string{idStopped}, "lockspace vmlockd", "messages of: node 2, node 3", "on node 2"},
	{"dlm_controld waits for a moment", false, func(w *world) {
		waits(w, "0000000000001000", controld.Started, controld.Started, controld.Started)
	}, []string{idStopped}, "lockspace vmlockd", "somebody", "goes on by itself"},
	{"dlm_controld must not be asked for whom it waits", false, func(w *world) {
		waits(w, "0000000000002fff", 0, controld.Disallowed, 0)
	}, []string{idStopped}, "lockspace vmlockd", "somebody", "dlm_tool ls -n"},

	{"no corosync.conf", false, func(w *world) { w.remove(coro) }, []string{idCoroConf}, coro, "no such file", ""},
	{"corosync.conf cannot be read", false, func(w *world) { w.at(coro).err = fs.ErrPermission }, []string{idUnchecked}, coro, "", "as root"},
	{"a brace is missing", false, func(w *world) { w.replace(coro, "nodelist {", "nodelist") }, []string{idCoroConf}, coro, "line 20", "corosync -t"},
	{"no cluster_name", false, func(w *world) { w.replace(coro, "\tcluster_name: vms\n", "") }, []string{idCoroName}, coro + ":2", "no name", "cluster_name:"},
	{"no quorum provider", false, func(w *world) { w.replace(coro, "\tprovider: corosync_votequorum\n", "") }, []string{idCoroQuorum}, coro, "both halves", "provider:"},
	{"no nodelist", false, func(w *world) {
		before, _, _ := strings.Cut(w.at(coro).data, "nodelist")
		w.write(coro, before)
	}, []string{idCoroNodes}, coro, "no nodes", "nodelist"},
	{"a node without a number", false, func(w *world) { w.replace(coro, "\t\tnodeid: 3\n", "") }, []string{idCoroNodes}, coro, `"host3" has no nodeid`, ""},
	{"a number twice", false, func(w *world) { w.replace(coro, "nodeid: 3", "nodeid: 2") }, []string{idCoroNodes}, coro, "same nodeid 2", ""},
	{"two_node with three", false, func(w *world) {
		w.replace(coro, "corosync_votequorum\n", "corosync_votequorum\n\ttwo_node: 1\n")
	}, []string{idCoroTwoNode}, coro, "3 nodes", "remove"},
	{"two_node without wait_for_all", false, func(w *world) {
		w.replace(coro, "\tnode {\n\t\tnodeid: 3\n\t\tname: host3\n\t\tring0_addr: 192.0.2.3\n\t}\n", "")
		w.replace(coro, "corosync_votequorum\n", "corosync_votequorum\n\ttwo_node: 1\n\twait_for_all: 0\n")
	}, []string{idCoroTwoNode}, coro, "wait_for_all", "wait_for_all: 1"},
	{"two_node and a quorum device", false, func(w *world) {
		quorumDevice(w, "ffsplit", 1)
		w.replace(coro, "\tnode {\n\t\tnodeid: 3\n\t\tname: host3\n\t\tring0_addr: 192.0.2.3\n\t}\n", "")
		w.replace(coro, "corosync_votequorum\n", "corosync_votequorum\n\ttwo_node: 1\n")
	}, []string{idCoroTwoNode}, coro, "does not start with both", "remove"},
	{"a quorum device that votes for both", false, func(w *world) {
		quorumDevice(w, "lms", 2)
		noFencing(w)
		w.daemon.Guarded = true
	}, []string{idCoroDevice}, coro + ":", `"lms"`, "ffsplit"},
	{"a quorum device with too many votes", false, func(w *world) { quorumDevice(w, "ffsplit", 2) }, []string{idCoroDevice}, coro + ":", "votes: 1", "votes: 1"},
	{"a quorum device that nobody asks", false, func(w *world) {
		quorumDevice(w, "ffsplit", 1)
		w.remove("/proc/910/comm")
	}, []string{idCoroDevice}, "corosync-qdevice", "does not run", "systemctl enable"},
	{"another name", false, func(w *world) { w.hostname = "host7" }, []string{idNodeName}, coro, `"host7"`, "name: host7"},
	{"another number", false, func(w *world) { w.replace(coro, "nodeid: 1\n", "nodeid: 11\n"); w.status.Nodes[0].NodeID = 11 }, []string{idNodeID}, coro, "node 1", "nodeid: 1"},

	{"fencing is off", false, noFencing, []string{idUnprotected}, "/etc/dlm/dlm.conf", "nothing guards this host", "leave guard.mode out of"},
	{"a virtual machine is not to be stopped", false, func(w *world) {
		noFencing(w)
		w.daemon.Guarded = true
		w.replace("/etc/vmlockd/vmlockd.toml", "backend =", "guard.vm = [{name = \"web\", on_loss = \"ignore\"}, {name = \"db\", on_loss = \"freeze\"}]\nbackend =")
	}, []string{idUnprotected}, "/etc/vmlockd/vmlockd.toml", `"ignore" for "web": if`, "freeze"},
	{"none is to be stopped", false, func(w *world) {
		noFencing(w)
		w.daemon.Guarded = true
		w.replace("/etc/vmlockd/vmlockd.toml", "backend =", "guard.on_loss = \"ignore\"\nbackend =")
	}, []string{idUnprotected}, "/etc/vmlockd/vmlockd.toml", `for all others: if`, "freeze"},
	{"fencing is off with two_node", false, func(w *world) {
		noFencing(w)
		w.replace(coro, "\tnode {\n\t\tnodeid: 3\n\t\tname: host3\n\t\tring0_addr: 192.0.2.3\n\t}\n", "")
		w.replace(coro, "corosync_votequorum\n", "corosync_votequorum\n\ttwo_node: 1\n")
	}, []string{idTwoNode}, "/etc/dlm/dlm.conf", "both then grant", ""},
	{"fencing was switched on in the file", false, func(w *world) { w.conf.EnableFencing = false; w.daemon.Guarded = true }, []string{idFenceStale}, "dlm.conf", "enable_fencing=0, and the file says 1", "restart dlm"},
	{"no fence agent", false, func(w *world) { w.write("/etc/dlm/dlm.conf", "post_join_delay=10\n") }, []string{idFenceConfig}, "dlm.conf", "wait for ever", "fence_all"},
	{"no dlm.conf", false, func(w *world) { w.remove("/etc/dlm/dlm.conf") }, []string{idFenceConfig}, "dlm.conf", "", ""},
	{"the fence agent is not installed", false, func(w *world) { w.remove("/usr/sbin/fence_apc") }, []string{idFenceAgent}, "dlm.conf:4", "fence_apc is not installed", ""},
	{"the fence agent may not be executed", false, func(w *world) {
		w.write("/etc/dlm/dlm.conf", "fence_all /opt/fence\n")
		w.write("/opt/fence", "")
	}, []string{idFenceAgent}, "dlm.conf:1", "may not be executed", ""},

	{"sbd has the watchdog", false, func(w *world) {
		dog(w, "/dev/watchdog")
		w.write("/proc/900/comm", "sbd\n")
		w.link("/proc/900/fd/5", "/dev/watchdog0")
	}, []string{idWatchdog}, "sbd (process 900)", "/dev/watchdog", "docs/fencing.md"},
	{"there is no watchdog", false, func(w *world) {
		dog(w, "/dev/watchdog")
		w.remove("/dev/watchdog")
	}, []string{idWatchdog}, "/dev/watchdog", "does not exist", "softdog"},
	{"the watchdog cannot be stopped once it was opened", false, func(w *world) {
		dog(w, "/dev/watchdog")
		w.write("/sys/class/watchdog/watchdog0/nowayout", "1\n")
	}, []string{idWatchdog}, "/dev/watchdog", "leaves it alone", "nowayout=0"},
	{"the watchdog is armed and cannot be stopped", false, func(w *world) {
		dog(w, "/dev/watchdog")
		armed(w, "1\n", `"armed":true,"device":"/dev/watchdog"`)
	}, []string{idDogStays}, "/dev/watchdog", "if it is stopped, or crashes", "before you stop vmlockd"},
	{"a watchdog that is not configured any more is armed and cannot be stopped", true, func(w *world) {
		armed(w, "1\n", `"left":["/dev/watchdog"]`)
	}, []string{idDogStays}, "/dev/watchdog", "vmlockd feeds it", "nowayout=0"},
	{"and vmlockd does not run", true, func(w *world) {
		armed(w, "1\n", `"left":["/dev/watchdog"]`)
		gone(w)
		noVMs(w)
	}, []string{idNotRunning, idDogStays}, "/dev/watchdog", "unless vmlockd runs, this host is reset", "nowayout=0"},
	{"the notes of the guard are damaged", true, func(w *world) {
		armed(w, "1\n", `"left":7`)
	}, []string{idUnchecked}, "guard.json", "whether a watchdog is armed", ""},
	{"a peer is silent", false, func(w *world) { w.daemon.Peers[1].Silent = true }, []string{idPeerSilent}, "host3 (node 3)", "does not answer", ""},
	{"a host runs no vmlockd", false, func(w *world) {
		w.daemon.Warnings = []DaemonWarning{{"no_daemon", "no vmlockd runs on: host2 (2)"}}
	}, []string{idPeerAbsent}, "status", "host2 (2)", "enable --now vmlockd"},
	{"a peer has another version", false, func(w *world) { w.daemon.Peers[0].Version = "0.9" }, []string{idPeerVersion}, "host2 (node 2)", "0.9 there and 1.0 here", ""},
	{"a peer has another configuration", false, func(w *world) {
		w.daemon.Warnings = []DaemonWarning{{warnConfigurations, "host2 differs"}}
	}, []string{idPeerConfig}, "vmlockd.toml", "host2 differs", ""},
	{"a peer has other rules", false, func(w *world) {
		w.daemon.Warnings = []DaemonWarning{{warnRules, "host2 names disks by other rules"}}
	}, []string{idPeerConfig}, "vmlockd.toml", "host2 names", ""},
}
