package doctor_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// fenceScript fences as soon as the test allows it.
const fenceScript = "#!/bin/sh\ntest -e /run/fence-ok\n"

const (
	qemuConf = "/etc/libvirt/qemu.conf"
	coroConf = "/etc/corosync/corosync.conf"
	dlmConf  = "/etc/dlm/dlm.conf"
	vmConf   = "/etc/vmlockd/vmlockd.toml"
	webXML   = "/run/libvirt/qemu/web.xml"
)

// vmConfig says of the shared folder what cannot be found out. It leaves the guard on:
// that is healthy. A hold-off is waited for below, so it is not much longer than
// the lab's corosync and that grace allow (32.6 s): the default is a minute.
const vmConfig = "backend = \"cluster\"\nguard.grace = \"1s\"\nguard.hold_off = \"35s\"\n[[identity.rule]]\ntype = \"hostfs\"\nscope = \"cluster\"\n"

// edits are faults that one edit of one file makes.
var edits = []struct {
	file, script string // of sed
	want         []string
}{
	{qemuConf, "/^lock_manager/d", []string{"lock-manager"}},
	{qemuConf, `s/^lock_manager.*/lock_manager = "sanlock"/`, []string{"lock-manager-other"}},
	{"/etc/libvirt/qemu-lockd.conf", "s/auto_disk_leases.*/auto_disk_leases = 0/", []string{"auto-disk-leases"}},
	{coroConf, "/cluster_name/d", []string{"corosync-cluster-name"}},
	{coroConf, "/provider/d", []string{"corosync-quorum"}},
	{coroConf, "s/nodeid: 3/nodeid: 2/", []string{"corosync-nodelist"}},
	{coroConf, `s/.*provider.*/&\ntwo_node: 1/`, []string{"corosync-two-node"}},
	{coroConf, "s/nodelist {/nodelist/", []string{"corosync-conf"}},
	{coroConf, "s/nodeid: 1$/nodeid: 11/", []string{"node-absent", "node-id"}},
	{dlmConf, "s/fence_lab/fence_none/", []string{"fence-agent-missing"}},
	{dlmConf, "/fence_all/d", []string{"fence-not-configured"}},
	{dlmConf, "1i enable_fencing=0", []string{"fence-conf-stale"}},
	{vmConf, "1i max_clients = 0", []string{"config"}},
	{vmConf, "/backend/s/cluster/local/", []string{"config-stale"}},
	{webXML, "s,<target dev='vda' bus='virtio'/>,&<shareable/>,", []string{"lock-mode"}},
	{"/etc/modules-load.d/dlm.conf", "s/^/#/", []string{"dlm-module-boot"}},
}

// commands are faults that a script makes and another one heals.
var commands = []struct {
	set, undo string
	want      []string
}{
	{"hostname elsewhere", "hostname node1", []string{"node-name"}},
	{"chmod 755 /run/vmlockd", "chmod 700 /run/vmlockd", []string{"run-dir-open"}},
	{"vmlockctl drain --reason test", "vmlockctl drain --undo", []string{"draining"}},
	{"touch /run/vmlockd/journal-cluster-vmlockd/journal.damaged-0-1", "rm /run/vmlockd/journal-cluster-vmlockd/journal.damaged-0-1", []string{"journal-damaged"}},
	// A second virtual machine of the same process, which has the disk.
	{"sed 's,<name>web<,<name>twin<,' " + webXML + " > /run/libvirt/qemu/twin.xml", "rm /run/libvirt/qemu/twin.xml", []string{"disk-twice"}},
	{
		"p=$(pidof vmlockd); prlimit --pid $p --nofile=$(($(ls /proc/$p/fd | wc -l) + 8)):4096", "prlimit --pid $(pidof vmlockd) --nofile=4096:4096",
		[]string{"nofile"},
	},
}

func TestDoctor(t *testing.T) {
	cfg := lab.Config{
		Libvirt: true, VMLockd: binaries.vmlockd, Binaries: map[string]string{"vmlockctl": binaries.vmlockctl},
		VMLockdConfig: func(int) string { return vmConfig },
		Fencing:       lab.ScriptFencing, FenceScript: fenceScript,
		Files: map[string]string{"/etc/modules-load.d/dlm.conf": "dlm\n"},
	}
	lab.Need(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Minute)
	t.Cleanup(cancel)
	s := &suite{ctx: ctx, begin: time.Now(), Lab: lab.ForTest(t, cfg)}
	must(t, s.Node(1).WaitLibvirt(ctx))
	must(t, os.WriteFile(filepath.Join(s.Shared(), "web.img"), lab.IdleGuest(), 0o600))
	must(t, os.WriteFile(filepath.Join(s.Shared(), "bare.img"), lab.IdleGuest(), 0o600))
	s.serving(t, lab.SharedDir+"/web.img")
	works(t)(s.Node(1).Create(ctx, lab.Domain{Name: "web", Disks: []lab.Disk{{Path: lab.SharedDir + "/web.img"}}}))
	// What a package of this machine has enabled would count in the nodes.
	s.sh(t, 1, "rm -f /etc/systemd/system/multi-user.target.wants/dlm.service")

	t.Run("Healthy", func(t *testing.T) {
		for _, n := range s.Nodes() {
			s.waitFinds(t, n.ID()) // they have booted just now, and may not know each other yet
			s.finds(t, n.ID())
		}
	})
	t.Run("Edits", func(t *testing.T) {
		for _, e := range edits {
			s.sh(t, 1, "cp -a "+e.file+" /tmp/saved; sed -i \""+strings.ReplaceAll(strings.ReplaceAll(e.script, `"`, `\"`), "$", `\$`)+"\" "+e.file+"; ! cmp -s "+e.file+" /tmp/saved")
			s.finds(t, 1, e.want...)
			s.sh(t, 1, "cp -a /tmp/saved "+e.file)
		}
	})
	t.Run("Commands", func(t *testing.T) {
		for _, c := range commands {
			s.sh(t, 1, c.set)
			s.finds(t, 1, c.want...)
			s.sh(t, 1, c.undo)
		}
	})
	t.Run("Definitions", func(t *testing.T) { definitions(t, s) })
	t.Run("Units", func(t *testing.T) { units(t, s) })
	t.Run("NotLocked", func(t *testing.T) { notLocked(t, s) })
	t.Run("BinaryReplaced", func(t *testing.T) { binaryReplaced(t, s) })
	t.Run("HealthyAgain", func(t *testing.T) { s.finds(t, 1) })
	t.Run("Daemon", func(t *testing.T) { daemon(t, s) })
	t.Run("Others", func(t *testing.T) { others(t, s) })
	t.Run("Controld", func(t *testing.T) { controld(t, s) })
	t.Run("HealthyAtLast", func(t *testing.T) {
		for _, n := range s.Nodes() {
			s.waitFinds(t, n.ID()) // the others notice a moment later that node 3 is back
		}
	})
	t.Run("Lost", func(t *testing.T) { lost(t, s) }) // last: it leaves a node that must be rebooted
}

// definitions are virtual machines that do not run. libvirt refuses some of these
// mistakes at the start only, or not at all.
func definitions(t *testing.T, s *suite) {
	one := func(name string, d lab.Disk) {
		text := lab.Domain{Name: name, Disks: []lab.Disk{d}}.XML()
		must(t, s.Node(1).WriteFile(s.ctx, "/etc/libvirt/qemu/"+name+".xml", []byte(text), 0o600))
	}
	one("a", lab.Disk{Path: "/dev/sdb"})
	s.finds(t, 1, "unstable-path")
	one("a", lab.Disk{Path: "/srv/a", Access: lab.Shareable, Format: "qcow2"})
	s.finds(t, 1, "shareable-format")
	one("a", lab.Disk{Path: "/srv/a", Access: lab.Shareable, Cache: "writeback"})
	s.finds(t, 1, "shareable-cache")
	one("a", lab.Disk{Path: "/srv/a", Access: lab.Shareable})
	s.finds(t, 1)
	one("b", lab.Disk{Path: "/srv/a"})
	s.finds(t, 1, "shareable-partial")
	s.sh(t, 1, "rm /etc/libvirt/qemu/a.xml /etc/libvirt/qemu/b.xml")
}

// units are read as soon as systemd seems to run the node, which it does not.
func units(t *testing.T, s *suite) {
	const dir = "/etc/systemd/system/"
	put := func(name, text string) { must(t, s.Node(1).WriteFile(s.ctx, dir+name, []byte(text), 0o644)) }
	put("vmlockd.service", "[Service]\nExecStart=/usr/local/sbin/vmlockd\nKillMode=process\nRuntimeDirectory=vmlockd\nRuntimeDirectoryPreserve=yes\n")
	put("virtlockd.socket", "[Socket]\nListenStream=/run/libvirt/virtlockd-sock\n")
	put("libvirtd.service", "[Unit]\nRequires=virtlogd.socket\n[Service]\nExecStart=/usr/sbin/libvirtd\n")
	s.sh(t, 1, "mkdir -p /run/systemd/system "+dir+"multi-user.target.wants; cd "+dir+"multi-user.target.wants; rm -f ../sockets.target.wants/virtlockd.socket pacemaker.service; "+ // where it is installed, it is enabled
		"for u in vmlockd corosync dlm; do ln -sf /lib/systemd/system/$u.service $u.service; done")
	s.finds(t, 1)
	put("vmlockd.service.d/a.conf", "[Service]\nKillMode=mixed\nRuntimeDirectoryPreserve=no\n")
	s.finds(t, 1, "unit-killmode", "unit-runtime-dir")
	s.sh(t, 1, "rm "+dir+"vmlockd.service.d/a.conf "+dir+"multi-user.target.wants/vmlockd.service "+dir+"multi-user.target.wants/corosync.service")
	s.finds(t, 1, "vmlockd-boot", "cluster-boot")
	s.sh(t, 1, "cd "+dir+"multi-user.target.wants; ln -s ../vmlockd.service ../corosync.service .")
	// As in Debian 12.
	put("libvirtd.service", "[Unit]\nRequires=virtlogd.socket\nRequires=virtlockd.socket\n[Service]\nExecStart=/usr/sbin/libvirtd\n")
	s.finds(t, 1, "virtlockd-unit")
	s.sh(t, 1, "rm -r /run/systemd "+dir+"vmlockd.service* "+dir+"virtlockd.socket "+dir+"libvirtd.service "+dir+"multi-user.target.wants/dlm.service")
}

// notLocked starts a virtual machine before the lock manager is set, and heals it
// by the remedy that doctor names.
func notLocked(t *testing.T, s *suite) {
	n := s.Node(1)
	restart := func() {
		s.restart(t, 1, lab.ServiceLibvirt)
		must(t, n.WaitLibvirt(s.ctx))
	}
	s.sh(t, 1, "cp "+qemuConf+" /tmp/saved; sed -i 's/^lock_manager.*/lock_manager = \"nop\"/' "+qemuConf)
	restart()
	works(t)(n.Create(s.ctx, lab.Domain{Name: "bare", Disks: []lab.Disk{{Path: lab.SharedDir + "/bare.img"}}}))
	s.finds(t, 1, "lock-manager", "vm-unlocked")
	s.sh(t, 1, "cp /tmp/saved "+qemuConf)
	s.finds(t, 1, "libvirt-not-restarted", "vm-unlocked")
	restart()
	s.finds(t, 1, "vm-unlocked")
	works(t)(n.Virsh(s.ctx, "suspend", "bare"))
	works(t)(n.Virsh(s.ctx, "resume", "bare"))
	s.finds(t, 1)
	works(t)(n.Destroy(s.ctx, "bare"))
}

func binaryReplaced(t *testing.T, s *suite) {
	s.sh(t, 1, "p=$(readlink /proc/$(pidof vmlockd)/exe); cp $p $p.new; mv -f $p.new $p")
	s.finds(t, 1, "binary-replaced")
	restart := func() { must(t, s.Node(1).Service(lab.ServiceLock).Signal(s.ctx, syscall.SIGUSR1)) }
	later := func() int { // how often it could not be done, as it was working for somebody
		log, err := s.Node(1).Log(s.ctx, lab.ServiceLock)
		must(t, err)
		return strings.Count(string(log), "it cannot be replaced just now, try again later")
	}
	waited := later()
	restart()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	must(t, lab.WaitFor(ctx, "the new program to run", func(context.Context) (bool, error) {
		if n := later(); n > waited {
			waited = n
			restart()
		}
		_, ids := s.doctor(t, 1)
		return len(ids) == 0, nil
	}))
}

// daemon is about vmlockd and who is in its place, on a node without locks.
func daemon(t *testing.T, s *suite) {
	n := s.Node(3)
	lockd := n.Service(lab.ServiceLock)

	must(t, lockd.Stop(s.ctx))
	s.finds(t, 3, "vmlockd-not-running")
	must(t, lockd.Start(s.ctx))
	s.waitFinds(t, 3)

	must(t, lockd.Signal(s.ctx, syscall.SIGSTOP))
	s.finds(t, 3, "vmlockd-no-answer")
	must(t, lockd.Signal(s.ctx, syscall.SIGCONT))
	s.waitFinds(t, 3)

	s.sh(t, 3, "rm /run/libvirt/virtlockd-sock")
	s.finds(t, 3, "socket-missing")
	s.restart(t, 3, lab.ServiceLock)
	s.waitFinds(t, 3)

	// It takes the path of the socket away. With virtlockd's own pid file, which vmlockd has locked, it would not start.
	other, err := n.Start(s.ctx, "virtlockd", "virtlockd", "--config", "/dev/null", "--pid-file", "/run/other.pid")
	must(t, err)
	s.waitFinds(t, 3, "other-lock-daemon")
	must(t, other.Stop(s.ctx))
	s.restart(t, 3, lab.ServiceLock)
	s.waitFinds(t, 3)
}

// others is about vmlockd on another host: absent, and of another lockspace.
func others(t *testing.T, s *suite) {
	lockd := s.Node(2).Service(lab.ServiceLock)
	must(t, lockd.Stop(s.ctx))
	s.waitFinds(t, 1, "peer-absent")
	must(t, lockd.Start(s.ctx))
	s.waitFinds(t, 1)
	s.waitFinds(t, 2) // who leaves the lockspace while he joins it may stay in the kernel for three minutes

	s.sh(t, 2, "cp -a "+vmConf+" /tmp/saved; printf '\\n[cluster]\\nlockspace = \"other\"\\n' >>"+vmConf)
	s.restart(t, 2, lab.ServiceLock)
	s.waitFinds(t, 1, "peer-config")
	s.sh(t, 2, "cp -a /tmp/saved "+vmConf)
	s.restart(t, 2, lab.ServiceLock)
	s.waitFinds(t, 1)
}

// controld is about dlm_controld, on a node without locks.
func controld(t *testing.T, s *suite) {
	dlm := s.Node(3).Service(lab.ServiceDLM)
	must(t, dlm.SignalGroup(s.ctx, syscall.SIGSTOP))
	s.finds(t, 3, "dlm-controld-no-answer")
	must(t, dlm.SignalGroup(s.ctx, syscall.SIGCONT))
	s.waitFinds(t, 3)

	again := func(script string) {
		must(t, s.Node(3).Service(lab.ServiceLock).Stop(s.ctx))
		must(t, dlm.Stop(s.ctx))
		s.sh(t, 3, "sed -i '"+script+"' "+dlmConf)
		must(t, dlm.Start(s.ctx))
		must(t, s.Node(3).WaitMembers(s.ctx, 1, 2, 3))
		must(t, s.Node(3).Service(lab.ServiceLock).Start(s.ctx))
	}
	again("1i enable_fencing=0")
	// Its guard stops what has locks instead. It waits for a whole hold-off first:
	// those of the others rely on fencing, and say nothing of who has vanished.
	s.waitFinds(t, 3)
	s.sh(t, 3, "cp -a "+vmConf+" /tmp/saved; sed -i '1i guard.mode = \"off\"' "+vmConf)
	s.restart(t, 3, lab.ServiceLock)
	s.waitFinds(t, 3, "peer-config", "unprotected") // the others have another guard.mode
	s.sh(t, 3, "cp -a /tmp/saved "+vmConf)
	again("1d")
	s.waitFinds(t, 3)
}

// lost cuts a node off, and then ends its cluster software.
func lost(t *testing.T, s *suite) {
	must(t, s.Node(3).Cut(s.ctx))
	s.waitFinds(t, 3, "no-quorum")
	s.waitFinds(t, 1, "fencing-pending")
	for _, node := range []int{1, 2} {
		s.sh(t, node, "touch /run/fence-ok")
	}
	s.waitFinds(t, 1, "node-absent")
	must(t, s.Node(3).Service(lab.ServiceCorosync).Kill(s.ctx))
	s.waitFinds(t, 3, "corosync-not-running", "dlm-controld-not-running", "reboot-needed")
}

// It needs no lab: those that are set up by an edit or a command are fifteen and more, each another one.
func TestManyFaults(t *testing.T) {
	ids := map[string]bool{}
	for _, e := range edits {
		for _, id := range e.want {
			ids[id] = true
		}
	}
	for _, c := range commands {
		for _, id := range c.want {
			ids[id] = true
		}
	}
	if len(ids) < 15 {
		t.Errorf("only %d: %v", len(ids), ids)
	}
}
