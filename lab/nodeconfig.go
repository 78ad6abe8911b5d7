package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Sockets by which a service shows that it is up.
const (
	corosyncSocket = "@quorum"    // libqb's abstract socket of corosync's quorum service
	dlmSocket      = "@dlmc_sock" // libdlmcontrol.h
	lockSocket     = "/run/libvirt/virtlockd-sock"
	libvirtSocket  = "/run/libvirt/libvirt-sock"
)

// Names of the services in a node, for Node.Service and for the names of the logs.
const (
	ServiceCorosync = "corosync"
	ServiceDLM      = "dlm_controld"
	ServiceLock     = "vmlockd" // also for stock virtlockd: whoever listens on virtlockd's socket
	ServiceLibvirt  = "libvirtd"
	ServiceQDevice  = "corosync-qdevice" // in the members of a cluster with a witness
	ServiceQNetd    = "corosync-qnetd"   // in the witness
)

// wireConfig translates a resolved configuration into what supervisor and nodes work through.
func (c Config) wireConfig() wire.LabConfig {
	out := wire.LabConfig{
		Name: c.Name, LogDir: c.LogDir, MemoryMB: c.MemoryMB, DeviceMB: c.DeviceMB, Binaries: c.Binaries,
	}
	for id := 1; id <= c.all(); id++ {
		out.Nodes = append(out.Nodes, c.node(id))
	}
	return out
}

func nodeName(id int) string { return fmt.Sprintf("node%d", id) }

func (c Config) node(id int) wire.NodeConfig {
	n := wire.NodeConfig{
		ID:       id,
		Hostname: nodeName(id),
		Interfaces: []wire.Interface{
			{Name: "vec0", CIDR: wire.ClusterAddr(id) + "/24"},
			{Name: "vec1", CIDR: wire.CommandAddr(id) + "/24"},
		},
		Modules: c.Modules,
		Links:   map[string]string{"/etc/mtab": "/proc/self/mounts"},
		Env:     c.Env,
	}
	host := func(dir string) string { return filepath.Join(nodeName(id), dir) }
	n.Mounts = []wire.Mount{
		{Path: wire.LogDir, Host: host("log"), Sync: true},
		{Path: wire.SharedDir, Host: "shared", Sync: true},
		{Path: wire.PrivateDir, Host: host("private")},
		{Path: wire.BinDir, Host: "bin"},
	}
	add := func(path string, mode uint32, text string) {
		n.Files = append(n.Files, wire.File{Path: path, Mode: mode, Data: []byte(text)})
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n")
	for i := 1; i <= c.all(); i++ {
		fmt.Fprintf(&hosts, "%s %s\n", wire.ClusterAddr(i), nodeName(i))
	}
	add("/etc/hosts", 0o644, hosts.String())
	add("/etc/hostname", 0o644, n.Hostname+"\n")
	add("/etc/resolv.conf", 0o644, "# The lab has no name server.\n")

	if id > c.Nodes {
		// Its directory for the socket is systemd's work elsewhere.
		n.Services = append(n.Services, wire.Service{Name: ServiceQNetd, Args: []string{"sh", "-c", "mkdir -p /run/corosync-qnetd && exec corosync-qnetd -f -d -s off"}})
		return n
	}
	if !c.NoCluster {
		c.cluster(&n, add)
	}
	c.lockDaemon(&n, host, add)
	if c.Libvirt {
		c.libvirt(&n, id, add)
	}
	if c.Systemd {
		c.systemd(&n, add)
	}
	for path, text := range c.Files {
		add(path, 0o644, text)
	}
	return n
}

// cluster adds corosync and dlm_controld.
func (c Config) cluster(n *wire.NodeConfig, add func(string, uint32, string)) {
	n.Modules = append([]string{"configfs", "dlm"}, n.Modules...)
	// What is configured on this machine must not leak into the nodes.
	for _, dir := range []string{"/etc/corosync", "/var/lib/corosync", "/etc/dlm"} {
		n.Mounts = append(n.Mounts, wire.Mount{Path: dir})
	}
	add("/etc/corosync/corosync.conf", 0o644, c.corosyncConf())

	var dlm strings.Builder
	// By default dlm_controld waits 30 s after a join before it fences.
	dlm.WriteString("post_join_delay=3\n")
	switch c.Fencing {
	case NoFencing:
		dlm.WriteString("enable_fencing=0\n")
	case PowerFencing:
		n.Links["/usr/local/sbin/fence_lab"] = wire.BinDir + "/lab"
	case ScriptFencing:
		add("/usr/local/sbin/fence_lab", 0o755, c.FenceScript)
	}
	for _, line := range c.DLMOptions {
		dlm.WriteString(line + "\n")
	}
	if c.Fencing != NoFencing {
		// Last: what follows a fence_all line belongs to it.
		dlm.WriteString("fence_all /usr/local/sbin/fence_lab\n")
	}
	add("/etc/dlm/dlm.conf", 0o644, dlm.String())
	n.Services = append(n.Services, wire.Service{Name: ServiceCorosync, Args: []string{"corosync", "-f"}})
	if c.Witness {
		n.Services = append(n.Services, wire.Service{Name: ServiceQDevice, After: []string{corosyncSocket},
			Args: []string{"sh", "-c", fmt.Sprintf(startQDevice, c.Nodes)}})
	}
	if c.NoControld {
		return
	}
	controld := []string{"dlm_controld", "--daemon_debug"}
	if c.IgnoreSIGPIPE {
		controld = []string{"sh", "-c", "trap '' PIPE && exec dlm_controld --daemon_debug"}
	}
	n.Services = append(n.Services,
		// Its socket is there before corosync serves. dlm_controld waits for that for 10 s only, which can be too short when
		// some nodes are booted while others are being lost.
		wire.Service{Name: ServiceDLM, Args: controld, After: []string{corosyncSocket},
			RetryOn: "corosync cfg init error"},
	)
}

// startQDevice waits a while until corosync has all members. It ends with "Assertion `sender_node != NULL' failed" (votequorum.c in 3.1.7)
// on a node that is registering its device when it gets another one into its ring, as happens when all boot at once.
const startQDevice = `mkdir -p /run/corosync-qdevice
for i in 1 2 3 4 5 6 7 8 9 10; do corosync-quorumtool -s | grep -q '^Nodes: *%d$' && break; sleep 1; done
exec corosync-qdevice -f -d`

// corosyncConf is the same on all nodes. A section's brace must end its line. After a message the token goes round 3 times
// as fast as it can, and not 30 times: with a few messages a second corosync would take a third of a node's processor.
func (c Config) corosyncConf() string {
	var b strings.Builder
	fmt.Fprintf(&b, `totem {
	version: 2
	cluster_name: lab
	transport: %s
	crypto_cipher: none
	crypto_hash: none
	token: %d
	seqno_unchanged_const: 3
}
logging {
	to_stderr: yes
	to_syslog: no
	timestamp: hires
}
quorum {
	provider: corosync_votequorum
`, c.Transport, c.Token.Milliseconds())
	for _, line := range c.QuorumOptions {
		fmt.Fprintf(&b, "\t%s\n", line)
	}
	if c.Witness {
		fmt.Fprintf(&b, "\tdevice {\n\t\tmodel: net\n\t\tvotes: 1\n\t\tnet {\n\t\t\ttls: off\n\t\t\thost: %s\n\t\t\talgorithm: ffsplit\n\t\t}\n\t}\n", wire.ClusterAddr(c.Nodes+1))
	}
	b.WriteString("}\nnodelist {\n")
	for id := 1; id <= c.Nodes; id++ {
		fmt.Fprintf(&b, "\tnode {\n\t\tnodeid: %d\n\t\tname: %s\n\t\tring0_addr: %s\n\t}\n", id, nodeName(id), wire.ClusterAddr(id))
	}
	b.WriteString("}\n")
	return b.String()
}

// lockDaemon adds who listens on virtlockd's socket.
func (c Config) lockDaemon(n *wire.NodeConfig, host func(string) string, add func(string, uint32, string)) {
	const configFile = "/etc/vmlockd/vmlockd.toml"
	switch c.LockDaemon {
	case Virtlockd:
		n.Services = append(n.Services, wire.Service{Name: ServiceLock, Args: []string{"virtlockd", "--config", "/etc/libvirt/virtlockd.conf"}})
		n.Mounts = append(n.Mounts, wire.Mount{Path: "/etc/libvirt"})
		add("/etc/libvirt/virtlockd.conf", 0o644, "log_level = 3\n")
	case VMLockd:
		// On a real host the daemon's state is on a disk, and is still there after a power cut.
		n.Mounts = append(n.Mounts, wire.Mount{Path: "/etc/vmlockd"}, wire.Mount{Path: "/var/lib/vmlockd", Host: host("vmlockd")})
		if c.VMLockdConfig != nil {
			if text := c.VMLockdConfig(n.ID); text != "" {
				add(configFile, 0o644, text)
			}
		}
		s := wire.Service{Name: ServiceLock, Args: append([]string{"vmlockd", "--config", configFile}, c.VMLockdArgs...)}
		if !c.NoCluster {
			s.After = []string{dlmSocket}
		}
		n.Services = append(n.Services, s)
	}
}

// libvirt adds stock libvirtd, as it runs without systemd, dbus and udev.
func (c Config) libvirt(n *wire.NodeConfig, id int, add func(string, uint32, string)) {
	if c.LockDaemon != Virtlockd { // which has mounted it already
		n.Mounts = append(n.Mounts, wire.Mount{Path: "/etc/libvirt"})
	}
	n.Mounts = append(n.Mounts, wire.Mount{Path: "/var/lib/libvirt"}, wire.Mount{Path: "/var/cache/libvirt", Host: "libvirt-cache"}, wire.Mount{Path: "/var/log/libvirt"})
	// In the cache is what libvirt has found out about QEMU; a node that boots again need not ask again.
	lockManager, after := "lockd", []string{lockSocket}
	switch c.LockDaemon {
	case NoLockDaemon:
		lockManager, after = "nop", nil
	case LaterLockDaemon:
		after = nil // the plug-in connects when the first virtual machine starts
	}
	// host_uuid: libvirt refuses to migrate between hosts of the same UUID, and all nodes have this machine's.
	add("/etc/libvirt/libvirtd.conf", 0o644, fmt.Sprintf(`listen_tls = 0
listen_tcp = 1
listen_addr = "%s"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "6c6f636b-0000-4000-8000-%012d"
log_outputs = "2:stderr"
`, wire.ClusterAddr(id), id))
	add("/etc/libvirt/qemu.conf", 0o644, fmt.Sprintf(`lock_manager = "%s"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
migration_address = "%s"
`, lockManager, wire.ClusterAddr(id)))
	// libvirtd looks up its default user before it reads qemu.conf; only the package libvirt-daemon-system makes that user.
	add("/etc/passwd", 0o644, withLine("/etc/passwd", "libvirt-qemu:x:64055:64055:Libvirt QEMU:/var/lib/libvirt:/usr/sbin/nologin"))
	add("/etc/group", 0o644, withLine("/etc/group", "libvirt-qemu:x:64055:"))
	add("/etc/libvirt/qemu-lockd.conf", 0o644, "auto_disk_leases = 1\n")
	if !c.QemuLocks {
		n.Links[emulator] = wire.BinDir + "/lab"
	}
	n.Services = append(n.Services, wire.Service{Name: ServiceLibvirt, Args: []string{"libvirtd", "--listen"}, After: after})
}

// withLine returns the text of a file of this machine, with a line in passwd(5) or group(5) format added unless there is one for that name.
// Without the file it is the line alone.
func withLine(path, line string) string {
	b, _ := os.ReadFile(path)
	name, _, _ := strings.Cut(line, ":")
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, name+":") {
			return string(b)
		}
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return string(b) + line + "\n"
}
