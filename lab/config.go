package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Paths in every node.
const (
	// SharedDir is one directory of all nodes. Every write reaches the others when they next open the file.
	SharedDir = wire.SharedDir
	// PrivateDir belongs to one node and survives its power cut, except what the node had not yet synced.
	PrivateDir = wire.PrivateDir
	// LogsDir is one node's directory of logs: what a program there writes to NAME.log is Node.Log(ctx, NAME).
	LogsDir = wire.LogDir
	// Device is the shared block device, a LUN; it exists if Config.DeviceMB is not 0.
	Device = wire.Device
)

// MaxNodes bounds Config.Nodes: all nodes share the processors of this machine.
const MaxNodes = wire.MaxNodes

// LockDaemon says who listens on libvirt's virtlockd socket in the nodes.
type LockDaemon string

// Lock daemons.
const (
	// NoLockDaemon: nobody; libvirt runs with its lock manager "nop".
	NoLockDaemon LockDaemon = "none"
	// Virtlockd is libvirt's own, stock virtlockd.
	Virtlockd LockDaemon = "virtlockd"
	// VMLockd is the program at Config.VMLockd.
	VMLockd LockDaemon = "vmlockd"
	// LaterLockDaemon: whom the test starts itself, or has started, as by Pacemaker. libvirt asks it, and runs before it is there.
	LaterLockDaemon LockDaemon = "later"
)

// Fencing says what dlm_controld does with a node that the cluster lost.
type Fencing string

// Ways of fencing.
const (
	// NoFencing: nothing (dlm_controld --enable_fencing 0); locks of a lost node are granted elsewhere once it is out of the membership.
	NoFencing Fencing = "none"
	// PowerFencing: a fence agent asks the lab to cut the lost node's power, as a power switch would.
	PowerFencing Fencing = "power"
	// ScriptFencing: the agent is Config.FenceScript.
	ScriptFencing Fencing = "script"
)

// Transport is how the nodes' corosync talk to each other.
type Transport string

// Transports of corosync.conf(5).
const (
	// UDPU is totem over plain UDP. The nodes have it by default: membership, tokens and quorum are the same in both, and
	// KNET takes and locks 160 MB of memory in each corosync, page by page, which costs 17 s of two cores in three nodes.
	UDPU Transport = "udpu"
	// KNET is what corosync itself has by default.
	KNET Transport = "knet"
)

// Config describes a lab. The zero value is three nodes with corosync and dlm_controld, no fencing.
type Config struct {
	// Name is unique among the labs of this machine; letters, digits and dashes, at most 40. Empty: a name is made up.
	Name string
	// Nodes is how many, 1 to MaxNodes. 0 means 3.
	Nodes int
	// MemoryMB is each node's memory in MiB, at least 256. It is taken only as it is used. 0 means 384, or 768 with libvirt.
	MemoryMB int
	// DeviceMB is the size in MiB of a block device that all nodes share at Device. 0 means there is none.
	DeviceMB int
	// LogDir is where the logs go on this machine, nodeN/console.log and so on. Empty: a temporary
	// directory that Close removes.
	LogDir string
	// NoCluster leaves corosync and dlm_controld out: nodes that only run commands.
	NoCluster bool

	// IgnoreSIGPIPE has dlm_controld ignore that signal, as systemd has its services do. Otherwise it may end when who has asked it
	// something is gone before the answer.
	IgnoreSIGPIPE bool
	// NoControld leaves only dlm_controld out, for whom else starts it, such as Pacemaker. Start does not wait for the cluster then.
	NoControld bool

	// Systemd has systemd as process 1 of the nodes, with cgroups, dbus, and this machine's units of corosync and dlm_controld, which it starts:
	// they are no Service of the node then. Other units are in Files, or started by a test. A node takes some seconds more to boot.
	Systemd bool

	// Token is corosync's token timeout. A lost node is noticed after 2.2 times this plus up to a second and a half per node
	// beyond two. Less than 2 s risks false alarms on a busy machine. 0 means 5 s.
	Token time.Duration
	// Transport is corosync's. Empty means UDPU.
	Transport Transport
	// QuorumOptions are further lines of the quorum section of corosync.conf, such as "two_node: 1"; see votequorum(5).
	QuorumOptions []string
	// Witness adds a node that is no member of the cluster, Lab.Witness, on the same network. It runs corosync-qnetd, and corosync on
	// the members has it as their quorum device: model net, algorithm ffsplit, corosync-qdevice(8)'s own timeouts, no TLS.
	Witness bool
	// Fencing is what happens to lost nodes. Empty means NoFencing.
	Fencing Fencing
	// FenceScript is the fence agent for ScriptFencing: a program text that starts with "#!", gets "node=N" on its
	// standard input, and ends with status 0 when that node can do no more harm.
	FenceScript string
	// DLMOptions are further lines of /etc/dlm/dlm.conf, such as "post_join_delay=10"; they come after the lab's own.
	DLMOptions []string

	// LockDaemon is who listens on virtlockd's socket. Empty means VMLockd if VMLockd is set, else NoLockDaemon.
	LockDaemon LockDaemon
	// VMLockd is the path on this machine of the vmlockd program, for LockDaemon VMLockd. It should be built
	// without cgo (CGO_ENABLED=0), or for this machine's own C library.
	VMLockd string
	// VMLockdConfig is the text of /etc/vmlockd/vmlockd.toml in the node with the given number. nil, or an
	// empty text, means that there is no such file.
	VMLockdConfig func(node int) string
	// VMLockdArgs are further arguments, after --config /etc/vmlockd/vmlockd.toml.
	VMLockdArgs []string

	// Libvirt starts stock libvirtd in each node, with QEMU in software emulation.
	Libvirt bool
	// QemuLocks leaves QEMU's own image locks on. They answer before the lock daemon does when two virtual machines of
	// the same node want one image, so by default the lab's emulator switches them off.
	QemuLocks bool

	// Binaries are further programs for the nodes: name there (found in PATH), path here.
	Binaries map[string]string
	// Modules are further kernel modules to load, such as "dm-mod", or "softdog nowayout=0" with parameters after its name.
	Modules []string
	// Files are further files: path in the node, content.
	Files map[string]string
	// Env is added to the environment of everything that runs in the nodes, as KEY=VALUE.
	Env []string

	// Binary is the path of the lab's own program. Empty: $VMLOCKD_LAB_BINARY, or else it is built with `go build`.
	Binary string
	// Detach lets the lab live on when the process that starts it ends; the one who wants that ends it with Close.
	Detach bool
	// NoWait makes Start return when the nodes run commands, without waiting for the cluster.
	NoWait bool
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,39}$`)

// all is how many nodes there are with the witness, which is the last.
func (c Config) all() int {
	if c.Witness {
		return c.Nodes + 1
	}
	return c.Nodes
}

// resolve returns the configuration with its defaults, or everything that is wrong with it.
func (c Config) resolve() (Config, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(""+format, args...)) }
	if c.Name != "" && !nameRE.MatchString(c.Name) {
		bad("name %q: letters, digits and dashes only, at most 40", c.Name)
	}
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.Nodes < 1 || c.all() > MaxNodes {
		bad("%d nodes: there can be 1 to %d, a witness included", c.all(), MaxNodes)
	}
	if c.Witness && (c.NoCluster || c.Detach) {
		bad("a witness is for a cluster, and for a lab that ends with the process that starts it")
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = 384
		if c.Libvirt {
			c.MemoryMB = 768
		}
	}
	c.NoWait = c.NoWait || c.NoControld
	if c.MemoryMB < 256 {
		bad("%d MiB of memory: corosync needs at least 256", c.MemoryMB)
	}
	if c.DeviceMB < 0 {
		bad("device of %d MiB", c.DeviceMB)
	}
	if c.Token == 0 {
		c.Token = 5 * time.Second
	}
	if c.Token < 500*time.Millisecond || c.Token > 10*time.Minute {
		bad("token %v: corosync needs a value from 500ms to 10m here", c.Token)
	}
	switch c.Transport {
	case "":
		c.Transport = UDPU
	case UDPU, KNET:
	default:
		bad("transport %q: it can be %q or %q", c.Transport, UDPU, KNET)
	}
	switch c.Fencing {
	case "":
		c.Fencing = NoFencing
	case NoFencing, PowerFencing:
	case ScriptFencing:
		if c.FenceScript == "" {
			bad("fencing %q needs a FenceScript", c.Fencing)
		}
	default:
		bad("fencing %q: it can be %q, %q or %q", c.Fencing, NoFencing, PowerFencing, ScriptFencing)
	}
	if c.LockDaemon == "" {
		c.LockDaemon = NoLockDaemon
		if c.VMLockd != "" {
			c.LockDaemon = VMLockd
		}
	}
	switch c.LockDaemon {
	case NoLockDaemon, Virtlockd, LaterLockDaemon:
	case VMLockd:
		if c.VMLockd == "" {
			bad("lock daemon %q needs the path of the program", c.LockDaemon)
		}
	default:
		bad("lock daemon %q: it can be %q, %q or %q", c.LockDaemon, NoLockDaemon, Virtlockd, VMLockd)
	}
	for _, path := range []*string{&c.VMLockd, &c.LogDir, &c.Binary} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		*path = abs
	}
	programs := map[string]string{}
	for name, path := range c.Binaries {
		programs[name] = path
	}
	if c.VMLockd != "" {
		programs["vmlockd"] = c.VMLockd
	}
	for name, path := range programs {
		abs, err := filepath.Abs(path)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil {
			bad("program %s: %w", name, err)
		}
		programs[name] = abs
	}
	c.Binaries = programs
	return c, errors.Join(errs...)
}
