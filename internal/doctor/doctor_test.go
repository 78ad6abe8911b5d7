package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/domstatus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a healthy host that a test may spoil.
type world struct {
	*tree
	daemon    Daemon
	daemonErr error
	again     *Daemon // what the daemon says from the second time on
	asked     int
	status    controld.Status
	statusErr error
	conf      controld.Config
	known     error
	change    controld.Change // of the lockspace
	members   []controld.Node // of that change
	later     func()          // happens between the first question about them and the second; may be nil
	inquired  int             // questions that need a dlm_controld which ignores SIGPIPE
	named     bool
	disks     map[string]Identity // what the daemon takes paths for; others are of NFS
}

func (w *world) identify(_ context.Context, path string) (Identity, error) {
	if id, ok := w.disks[path]; ok {
		return id, nil
	}
	if unstableName.MatchString(path) {
		return Identity{ByPath: true, Doubt: true}, nil // it is not there
	}
	return Identity{Type: "nfs4"}, w.daemonErr
}

func (w *world) Status(context.Context) (controld.Status, error) { return w.status, w.statusErr }
func (w *world) Config(context.Context) (controld.Config, error) { return w.conf, w.statusErr }
func (w *world) Known(context.Context, string) error             { return w.known }

func (w *world) Lockspace(_ context.Context, name string) (controld.Lockspace, error) {
	w.inquired++
	return controld.Lockspace{Name: name, Next: w.change}, nil
}

func (w *world) Nodes(_ context.Context, _ string, of controld.NodesOf) ([]controld.Node, error) {
	w.inquired++
	if of != controld.NextNodes {
		return nil, errTest
	}
	members := slices.Clone(w.members)
	if w.later != nil {
		w.later()
		w.later = nil
	}
	return members, nil
}

func (w *world) ask(context.Context) (Daemon, error) {
	w.asked++
	if w.asked > 1 && w.again != nil {
		return *w.again, w.daemonErr
	}
	if w.daemonErr != nil {
		return Daemon{}, w.daemonErr
	}
	return w.daemon, nil
}

func (w *world) examine(t *testing.T) []Finding {
	t.Helper()
	return Examine(t.Context(), Options{System: w.tree, Controld: w, Daemon: w.ask, Identify: w.identify, Config: config.DefaultPath(), ConfigNamed: w.named, Pause: time.Nanosecond}).Findings
}

const (
	web    = "/srv/vm/web.img"
	shared = "/srv/vm/shared.img"
)

func holders(second string) []Holder {
	return []Holder{
		{Here: true, Node: "host1", VM: "web", PID: 812, Resource: web},
		{Here: true, Node: "host1", VM: "web", PID: 812, Resource: shared, Shared: true},
		{Here: true, Node: "host1", VM: "db", PID: 830, Resource: second},
		{Here: true, Node: "host1", VM: "db", PID: 830, Resource: shared, Shared: true},
	}
}

func localWorld(t *testing.T) *world {
	return &world{
		tree:      load(t, "testdata/local.txtar"),
		daemon:    Daemon{Version: "1.0", PID: 739, Backend: "local", Socket: libvirtSocket, Holders: holders("/dev/vg0/db")},
		statusErr: controld.ErrNotRunning,
	}
}

func clusterWorld(t *testing.T) *world {
	member := func(id int) controld.DaemonNode { return controld.DaemonNode{NodeID: id, Member: true} }
	held := append(holders("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4"),
		Holder{Node: "host2", VM: "mail", PID: 812, Resource: "/srv/vm/mail.img"},
		Holder{Node: "host2", VM: "lease", PID: 900, Lockspace: "/srv/leases/cluster", Resource: "role"})
	return &world{
		tree: load(t, "testdata/cluster.txtar"),
		daemon: Daemon{
			Version: "1.0", PID: 739, Backend: "cluster", Socket: libvirtSocket, NodeID: 1, Lockspace: lockspaceRunning, Holders: held,
			Peers: []Peer{{NodeID: 2, Name: "host2", Version: "1.0"}, {NodeID: 3, Name: "host3"}},
		},
		status: controld.Status{NodeID: 1, Quorate: true, Members: 3, Nodes: []controld.DaemonNode{member(1), member(2), member(3)}},
		conf:   controld.Config{EnableFencing: true},
	}
}

func TestHealthy(t *testing.T) {
	for name, w := range map[string]*world{"local": localWorld(t), "cluster": clusterWorld(t)} {
		for _, f := range w.examine(t) {
			t.Errorf("%s: %+v", name, f)
		}
		if w.asked != 1 {
			t.Errorf("%s: the daemon was asked %d times", name, w.asked)
		}
	}
}

// What is odd and yet good has to be found good.
func TestStillHealthy(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"no configuration file": func(w *world) {
			if os.Geteuid() == 0 { // others have other defaults
				w.remove("/etc/vmlockd/vmlockd.toml")
				w.daemon.Backend = config.BackendLocal
			}
		},
		"sbd has another watchdog than vmlockd": func(w *world) {
			if w.daemon.Backend == config.BackendCluster {
				dog(w, "/dev/watchdog1")
				w.write("/proc/900/comm", "sbd\n")
				w.link("/proc/900/fd/5", "/dev/watchdog0")
			}
		},
		"fencing, and sbd has the watchdog": func(w *world) {
			if w.daemon.Backend == config.BackendCluster {
				dog(w, "/dev/watchdog")
				w.write("/etc/dlm/dlm.conf", "fence_all /usr/sbin/fence_apc\n")
				w.conf.EnableFencing = true
				w.write("/proc/900/comm", "sbd\n")
				w.link("/proc/900/fd/5", "/dev/watchdog0")
			}
		},
		"a watchdog is armed and can be stopped": func(w *world) { armed(w, "0\n", `"armed":true,"device":"/dev/watchdog"`) },
		"a watchdog was armed before the boot": func(w *world) {
			armed(w, "1\n", `"armed":true,"device":"/dev/watchdog"`)
			w.write("/proc/sys/kernel/random/boot_id", "c\n")
		},
		"no systemd": func(w *world) { w.remove("/run/systemd"); w.remove("/etc/systemd") },
		"virtlockd.socket enabled, but masked": func(w *world) {
			w.link("/etc/systemd/system/virtlockd.socket", "/dev/null")
			w.link("/etc/systemd/system/sockets.target.wants/virtlockd.socket", "/lib/systemd/system/virtlockd.socket")
		},
		"virtlockd.socket for vmlockd": func(w *world) {
			w.write("/etc/systemd/system/virtlockd.socket.d/vmlockd.conf", "[Socket]\nService=vmlockd.service\n")
			w.link("/etc/systemd/system/sockets.target.wants/virtlockd.socket", "/lib/systemd/system/virtlockd.socket")
			w.link("/proc/1/fd/9", "socket:[193]")
		},
		"virtlockd.socket enabled, and left out while vmlockd is enabled": func(w *world) {
			w.write("/lib/systemd/system/virtlockd.socket.d/50-vmlockd.conf", "[Unit]\nConditionPathExists=!/etc/systemd/system/multi-user.target.wants/vmlockd.service\n")
			w.link("/etc/systemd/system/sockets.target.wants/virtlockd.socket", "/lib/systemd/system/virtlockd.socket")
			w.replace("/etc/systemd/system/libvirtd.service", "Requires=virtlogd.socket\n", "Requires=virtlogd.socket\nRequires=virtlockd.socket\n")
		},
		"virtlockd.socket elsewhere": func(w *world) {
			w.write("/etc/systemd/system/virtlockd.socket", "[Socket]\nListenStream=/run/unused\n")
			w.link("/etc/systemd/system/sockets.target.wants/virtlockd.socket", "/etc/systemd/system/virtlockd.socket")
		},
		"the module is loaded by dlm's unit":   func(w *world) { w.remove("/etc/modules-load.d") },
		"the module is loaded by /etc/modules": func(w *world) { w.remove("/etc/modules-load.d"); w.write("/etc/modules", "# x\ndlm\n") },
		"the module is built in": func(w *world) {
			w.remove("/sys/module/dlm")
			w.write("/sys/module/dlm/version", "")
			w.remove("/etc/modules-load.d")
		},
		"a suspended machine has no locks": func(w *world) {
			w.replace("/run/libvirt/qemu/web.xml", "state='running'", "state='paused'")
			w.daemon.Holders = w.daemon.Holders[2:]
		},
		"a machine that has just ended": func(w *world) { w.remove("/proc/812"); w.daemon.Holders = w.daemon.Holders[2:] },
		"a machine that has just started": func(w *world) {
			full := w.daemon
			w.again = &full
			w.daemon.Holders = w.daemon.Holders[2:]
		},
		"locks named by a hash": func(w *world) {
			w.daemon.Holders = slices.Clone(w.daemon.Holders)
			w.daemon.Holders[0].Lockspace = "/var/lib/libvirt/lockd/files"
			w.daemon.Holders[0].Resource = domstatus.Hashed(web)
		},
		"a lock manager by a link": func(w *world) {
			w.replace("/etc/libvirt/qemu.conf", `lock_manager = "lockd"`, "lock_manager = 'dlm'")
			w.link("/usr/lib/x86_64-linux-gnu/libvirt/lock-driver/dlm.so", "lockd.so")
			w.write("/etc/libvirt/qemu-dlm.conf", "auto_disk_leases = 1\n")
			w.write("/etc/libvirt/qemu-lockd.conf", "auto_disk_leases = 0\n")
		},
		"no qemu-lockd.conf":      func(w *world) { w.remove("/etc/libvirt/qemu-lockd.conf") },
		"libvirt does not run":    func(w *world) { w.remove("/proc/756") },
		"a libvirtd without QEMU": func(w *world) { w.write("/proc/756/maps", "/usr/sbin/libvirtd\n") },
		"a volume of a pool": func(w *world) {
			w.replace("/run/libvirt/qemu/web.xml", "<disk type='file' device='disk'>", "<disk type='volume' device='disk'>")
			w.replace("/run/libvirt/qemu/web.xml", "<source file='"+web+"' index='1'/>", "<source pool='vms' volume='web.img' index='1'/>")
			w.write("/etc/libvirt/storage/vms.xml", "<pool type='dir'><name>vms</name><target><path>/srv/vm</path></target></pool>")
		},
		"fencing off on the command line": func(w *world) {
			w.replace("/proc/735/cmdline", "--foreground", "--enable_fencing=0\x00--foreground")
			w.conf.EnableFencing = false
			w.daemon.Guarded = true
		},
		"a guard instead of fencing": func(w *world) {
			noFencing(w)
			w.daemon.Guarded = true
		},
		"pacemaker fences": func(w *world) {
			w.write("/etc/dlm/dlm.conf", "")
			w.write("/proc/901/comm", "pacemakerd\n")
			w.remove("/etc/systemd/system/multi-user.target.wants/dlm.service")
		},
		"pacemaker, and systemd waits for its dlm_controld": func(w *world) {
			pacemaker(w)
			w.write(pacemakerDropIn, "[Unit]\nConditionPathExists=/run/dlm_controld/dlm_controld.pid\n")
		},
		"pacemaker, and systemd waits by another drop-in": func(w *world) {
			pacemaker(w)
			w.write("/etc/systemd/system/vmlockd.service.d/override.conf", "[Unit]\nConditionPathExists=/etc/machine-id\nConditionPathExists=/var/run/dlm_controld/dlm_controld.pid\n")
		},
		"pacemaker, and systemd starts dlm_controld": func(w *world) {
			pacemaker(w)
			w.link("/etc/systemd/system/multi-user.target.wants/dlm.service", "/lib/systemd/system/dlm.service")
		},
		"pacemaker has dlm_controld, and not vmlockd": func(w *world) {
			pacemaker(w)
			w.replace(cibPath, `class="systemd" type="vmlockd"`, `class="ocf" provider="vmlockd" type="vmlockd"`)
		},
		"pacemaker has vmlockd, and not dlm_controld": func(w *world) {
			pacemaker(w)
			w.replace(cibPath, `type="controld"`, `type="Dummy"`)
		},
		"pacemaker has neither": func(w *world) {
			pacemaker(w)
			w.write(cibPath, "<cib><configuration><resources/></configuration></cib>\n")
		},
		"two nodes": func(w *world) {
			w.replace("/etc/corosync/corosync.conf", "\tnode {\n\t\tnodeid: 3\n\t\tname: host3\n\t\tring0_addr: 192.0.2.3\n\t}\n", "")
			w.replace("/etc/corosync/corosync.conf", "corosync_votequorum\n", "corosync_votequorum\n\ttwo_node: 1\n\twait_for_all: 1\n")
		},
		"a quorum device":                      func(w *world) { quorumDevice(w, "ffsplit", 1) },
		"a quorum device for all, and fencing": func(w *world) { quorumDevice(w, "lms", 2) },
		"a host name with a domain":            func(w *world) { w.hostname = "host1.example.org" },
	} {
		w := clusterWorld(t)
		change(w)
		for _, f := range w.examine(t) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// quorumDevice adds one, and a corosync-qdevice that runs.
func quorumDevice(w *world, algorithm string, votes int) {
	w.replace("/etc/corosync/corosync.conf", "corosync_votequorum\n", fmt.Sprintf(
		"corosync_votequorum\n\tdevice {\n\t\tmodel: net\n\t\tvotes: %d\n\t\tnet {\n\t\t\thost: 192.0.2.9\n\t\t\talgorithm: %s\n\t\t}\n\t}\n", votes, algorithm))
	w.write("/proc/910/comm", "corosync-qdevic\n")
}

// fault is something that is wrong, and what has to be found, no more and no less.
type fault struct {
	name   string
	local  bool // on a host with backend "local"
	change func(w *world)
	ids    []string
	where  string // in Where of one of them
	what   string // in What of one of them
	remedy string // in Remedy of one of them
}

func TestFaults(t *testing.T) {
	found := map[string]bool{}
	for _, f := range slices.Concat(daemonFaults, clusterFaults, pacemakerFaults, libvirtFaults) {
		t.Run(f.name, func(t *testing.T) {
			w := clusterWorld(t)
			if f.local {
				w = localWorld(t)
			}
			f.change(w)
			list := w.examine(t)
			var ids []string
			has := func(part string, of func(Finding) string) bool {
				return slices.ContainsFunc(list, func(x Finding) bool { return strings.Contains(of(x), part) })
			}
			for _, x := range list {
				ids = append(ids, x.ID)
				found[x.ID] = true
				if x.What == "" || x.Where == "" || x.Remedy == "" || x.Severity != kindOf(x.ID).Severity {
					t.Errorf("something is missing in %+v", x)
				}
			}
			slices.Sort(ids)
			slices.Sort(f.ids)
			if !slices.Equal(ids, f.ids) || !has(f.where, func(x Finding) string { return x.Where }) ||
				!has(f.what, func(x Finding) string { return x.What }) || !has(f.remedy, func(x Finding) string { return x.Remedy }) {
				t.Errorf("want %q with %q, %q, %q, found:", f.ids, f.where, f.what, f.remedy)
				for _, x := range list {
					t.Errorf("  %+v", x)
				}
			}
		})
	}
	for _, k := range Catalogue() {
		if !found[k.ID] {
			t.Errorf("no test finds %s", k.ID)
		}
	}
}

func TestCatalogue(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Catalogue() {
		if seen[k.ID] || k.Title == "" || rank(k.Severity) < 0 {
			t.Errorf("%+v", k)
		}
		seen[k.ID] = true
	}
}

func TestWorstFirst(t *testing.T) {
	w := clusterWorld(t)
	w.hostname = "other"
	w.write("/etc/libvirt/qemu.conf", "")
	w.at("/etc/dlm/dlm.conf").err = fs.ErrPermission
	r := Examine(t.Context(), Options{System: w.tree, Controld: w, Daemon: w.ask, Config: config.DefaultPath()})
	if r.Backend != "cluster" || r.Count(Fault) != 1 || r.Count(Warning) != 1 || r.Count(Unchecked) != 1 {
		t.Fatalf("%+v", r)
	}
	for i, want := range []Severity{Fault, Warning, Unchecked} {
		if r.Findings[i].Severity != want {
			t.Errorf("finding %d is %+v", i, r.Findings[i])
		}
	}
}

// However much is wrong, the report has bounds.
func TestMany(t *testing.T) {
	w := clusterWorld(t)
	var b strings.Builder
	for range 100 {
		b.WriteString("\tnode {\n\t\tname: x" + strings.Repeat("y", 10_000) + "\n\t}\n")
	}
	w.replace("/etc/corosync/corosync.conf", "nodelist {\n", "nodelist {\n"+b.String())
	list := w.examine(t)
	if len(list) != maxOfOne+1 {
		t.Errorf("%d findings", len(list))
	}
	for _, f := range list {
		if len(f.What)+len(f.Where)+len(f.Remedy) > 4000 {
			t.Errorf("a finding of %d bytes", len(f.What))
		}
	}
	if last := list[len(list)-1]; !strings.Contains(last.What, "80 more places") {
		t.Errorf("the last is %+v", last)
	}
}

// The examination ends with its context also when dlm_controld and the daemon hang.
func TestEndsWithContext(t *testing.T) {
	w := clusterWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	r := Examine(ctx, Options{System: w.tree, Controld: hanging{}, Config: config.DefaultPath(), Daemon: func(ctx context.Context) (Daemon, error) {
		<-ctx.Done()
		return Daemon{}, ctx.Err()
	}})
	var ids []string
	for _, f := range r.Findings {
		ids = append(ids, f.ID)
	}
	for _, id := range []string{idNoAnswer, idControldMum, idUnchecked} {
		if !slices.Contains(ids, id) {
			t.Errorf("%s is not in %q", id, ids)
		}
	}
}

type hanging struct{}

func (hanging) Status(ctx context.Context) (controld.Status, error) {
	<-ctx.Done()
	return controld.Status{}, ctx.Err()
}

func (hanging) Config(ctx context.Context) (controld.Config, error) {
	<-ctx.Done()
	return controld.Config{}, ctx.Err()
}

func (hanging) Known(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func (hanging) Lockspace(ctx context.Context, _ string) (controld.Lockspace, error) {
	<-ctx.Done()
	return controld.Lockspace{}, ctx.Err()
}

func (hanging) Nodes(ctx context.Context, _ string, _ controld.NodesOf) ([]controld.Node, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

var errTest = errors.New("it is broken")
