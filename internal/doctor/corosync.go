package doctor

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

const (
	coroPath = "/etc/corosync/corosync.conf"
	dlmPath  = "/etc/dlm/dlm.conf"
)

// corosyncConf looks at corosync.conf; nil if there is none to go by.
func (x *exam) corosyncConf() *section {
	text, err := x.System.ReadFile(coroPath, maxConf)
	switch {
	case absent(err):
		x.find(idCoroConf, coroPath, "see 'On real hosts' in the README of vmlockd for what it has to say; it is the same on all hosts", "there is no such file: corosync does not start")
		return nil
	case err != nil:
		x.unchecked(coroPath, err, "the configuration of corosync")
		return nil
	}
	conf, err := parseCorosync(text)
	if err != nil {
		x.find(idCoroConf, coroPath, "correct that line; 'corosync -t' checks the file", "it cannot be understood: %v", err)
		return nil
	}
	at := func(line int) string {
		if line == 0 {
			return coroPath
		}
		return fmt.Sprintf("%s:%d", coroPath, line)
	}
	if s := conf.lookup("totem", "cluster_name"); s.text == "" {
		x.find(idCoroName, at(conf.sub("totem").line), "cluster_name: NAME in the section totem, the same on all hosts", "the cluster has no name, and dlm_controld does not start without one")
	}
	if s := conf.lookup("quorum", "provider"); s.text != "corosync_votequorum" {
		x.find(idCoroQuorum, at(s.line), "provider: corosync_votequorum in the section quorum", "the quorum provider is %q: without quorum both halves of a split cluster would go on, and dlm_controld does not start", s.text)
	}
	nodes := conf.nodes()
	if len(nodes) == 0 {
		x.find(idCoroNodes, coroPath, "a section nodelist with a section node { nodeid: N, name: HOST, ring0_addr: ADDRESS } for each host", "the file lists no nodes")
	}
	for i, n := range nodes {
		switch j := slices.IndexFunc(nodes[:i], func(m coroNode) bool { return m.id == n.id }); {
		case n.id == 0:
			x.find(idCoroNodes, at(n.line), "nodeid: N, another whole number for each node", "the node %q has no nodeid", n.name)
		case j >= 0:
			x.find(idCoroNodes, at(n.line), "nodeid: N, another whole number for each node", "the nodes %q and %q have the same nodeid %d", nodes[j].name, n.name, n.id)
		}
	}
	x.twoNode(conf, at)
	x.device(conf, at)
	return conf
}

func (x *exam) twoNode(conf *section, at func(int) string) {
	two := conf.lookup("quorum", "two_node")
	if !yes(two.text) {
		return
	}
	if n := len(conf.nodes()); n > 2 {
		x.find(idCoroTwoNode, at(two.line), "remove the line two_node", "two_node is set and there are %d nodes: one host alone would have quorum", n)
	}
	if conf.device().line > 0 {
		// votequorum.c, votequorum_readconfig: an error at the start, and one of both has no effect after a reload.
		x.find(idCoroTwoNode, at(two.line), "remove the line two_node", "two_node is set and there is a quorum device: corosync does not start with both, and each host alone may have quorum")
	}
	if all := conf.lookup("quorum", "wait_for_all"); all.text != "" && !yes(all.text) {
		x.find(idCoroTwoNode, at(all.line), "wait_for_all: 1, or remove the line, as two_node sets it",
			"two_node without wait_for_all: a host that boots while it cannot see the other begins to grant locks that the other has")
	}
}

// device looks at the quorum device: corosync-qdevice(8).
func (x *exam) device(conf *section, at func(int) string) {
	device := conf.device()
	if device.line == 0 {
		return
	}
	algorithm, votes := device.sub("net").values["algorithm"], device.values["votes"]
	switch {
	case algorithm.text != "" && algorithm.text != "ffsplit":
		if !x.fences() {
			x.find(idCoroDevice, at(algorithm.line), "algorithm: ffsplit there and votes: 1 in the section device, if the number of hosts is even; else have no device",
				"the quorum device has the algorithm %q, with which more than one part of the cluster can have quorum: a host that has vanished is waited for until somebody says that it is off", algorithm.text)
		}
	case votes.text != "1":
		x.find(idCoroDevice, at(max(device.line, votes.line)), "votes: 1 in the section device", "the quorum device has no votes: 1, without which corosync-qdevice does not start with the algorithm ffsplit")
	}
	// The kernel keeps 15 bytes of a program's name.
	if x.procsErr == nil && len(x.called("corosync-qdevic")) == 0 {
		x.find(idCoroDevice, "corosync-qdevice", "systemctl enable --now corosync-qdevice; corosync-qdevice-tool -s says how it is",
			"there is a quorum device, and corosync-qdevice does not run: its vote is missing on this host, which may have no quorum when another host is lost")
	}
}

// fences reports what dlm_controld says of fencing; no if it says nothing.
func (x *exam) fences() bool {
	c, err := ask(x.ctx, controldTimeout, x.Controld.Config)
	return err == nil && c.EnableFencing
}

// fencing looks at what happens to a host that the cluster loses.
func (x *exam) fencing(answered bool, conf *section) {
	text, err := x.System.ReadFile(dlmPath, maxConf)
	if err != nil && !absent(err) {
		x.unchecked(dlmPath, err, "how lost hosts are fenced")
		return
	}
	file := parseDLM(text)
	inFile := file.values["enable_fencing"].text != "0" // dlm_controld -h: 1 by default
	on, known := inFile, false
	if answered {
		c, err := ask(x.ctx, controldTimeout, x.Controld.Config)
		if err != nil {
			x.unchecked("dlm_controld", err, "whether it fences")
		} else {
			on, known = c.EnableFencing, true
		}
	}
	if known && on != inFile && !x.fencingByOption() {
		x.find(idFenceStale, dlmPath, "restart dlm while no virtual machine runs on this host (vmlockctl drain)",
			"dlm_controld runs with enable_fencing=%d, and the file says %d: it was changed since", one(on), one(inFile))
	}
	if on {
		x.agents(file)
		return
	}
	x.watchdog()
	if x.daemon.Guarded {
		if list := x.cfg.Guard.Ignored(); len(list) > 0 {
			x.find(idUnprotected, x.Config, "on_loss = \"kill\" or \"freeze\" there (docs/guard.md), unless nothing but these virtual machines counts",
				"on_loss = \"ignore\" for %s: if this host loses the cluster these go on writing, and while one of them runs the other hosts get nothing of this host before somebody says that it is off", strings.Join(list, ", "))
		}
		return
	}
	remedy := "remove enable_fencing=0 from " + dlmPath + " and configure an agent (man dlm.conf), for example with sbd"
	if conf != nil && yes(conf.lookup("quorum", "two_node").text) {
		x.find(idTwoNode, dlmPath, remedy, "two_node gives each of the two hosts quorum when they cannot see each other, and fencing is off: both then grant the same locks")
		return
	}
	remedy += ", or leave guard.mode out of " + x.Config + " (docs/guard.md)"
	x.find(idUnprotected, dlmPath, remedy, "unprotected: fencing is off and nothing guards this host: if it is cut off from the cluster, other hosts get its locks while its virtual machines go on writing")
}

// fencingByOption says that dlm_controld was told on its command line, which
// overrides the file.
func (x *exam) fencingByOption() bool {
	for _, p := range x.called("dlm_controld") {
		for _, a := range x.args(p) {
			if a == "-f" || len(a) >= 16 && a[:16] == "--enable_fencing" || len(a) > 2 && a[:2] == "-f" {
				return true
			}
		}
	}
	return false
}

// agents looks for the programs that fence.
func (x *exam) agents(file dlmConf) {
	list := file.agents
	if len(list) == 0 {
		// pacemaker brings one, dlm_stonith, and fences by itself.
		if len(x.called("pacemakerd")) == 0 {
			x.find(idFenceConfig, dlmPath, "fence_all AGENT, or device and connect lines (man dlm.conf)",
				"fencing is on, no agent is configured, and pacemaker does not run: when a host is lost, all others wait for ever")
		}
		return
	}
	for _, a := range list {
		places := []string{a.program}
		if a.program[0] != '/' {
			places = nil
			for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
				places = append(places, sysPath(dir, a.program))
			}
		}
		why := "is not installed"
		for _, p := range places {
			info, err := x.System.Stat(p)
			if err != nil {
				continue
			}
			if info.Mode&0o111 != 0 && info.Mode.IsRegular() {
				why = ""
				break
			}
			why = "may not be executed (" + fs.FileMode(info.Mode).String() + ")"
		}
		if why != "" {
			x.find(idFenceAgent, fmt.Sprintf("%s:%d", dlmPath, a.line), "install the package of "+a.program+", or name an agent that exists",
				"the fence agent %s %s: when a host is lost, all others wait for ever", a.program, why)
		}
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}
