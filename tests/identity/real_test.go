package identity_test

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// tools are what makes storage in the nodes, and the Debian packages that have them.
var tools = map[string]string{
	"lvm": "lvm2", "dmsetup": "dmsetup", "mkfs.ext4": "e2fsprogs", "mkfs.gfs2": "gfs2-utils", "mkfs.ocfs2": "ocfs2-tools", "o2cb": "ocfs2-tools",
	"exportfs": "nfs-kernel-server", "rpc.mountd": "nfs-kernel-server", "rpc.nfsd": "nfs-kernel-server", "mount.nfs": "nfs-common", "rpcbind": "rpcbind",
	"nbd-server": "nbd-server", "nbd-client": "nbd-client", "iscsid": "open-iscsi", "iscsiadm": "open-iscsi",
	"cryptsetup": "cryptsetup-bin", "mdadm": "mdadm", "drbdadm": "drbd-utils", "smbd": "samba", "mount.cifs": "cifs-utils",
}

// moreTools are those for TestRealStorage alone.
var moreTools = map[string]string{
	"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "ceph-mds": "ceph-mds", "rbd": "ceph-common", "glusterfsd": "glusterfs-server",
	"mkfs.btrfs": "btrfs-progs", "mkfs.xfs": "xfsprogs",
}

// TestRealStorage has three nodes share storage as hosts do, by the kernel's own
// drivers and file systems and the tools that go with them. Who uses a disk is
// vmlockctl run.
func TestRealStorage(t *testing.T) { realStorage(t, false) }

// TestRealStorageLibvirt is the same with stock libvirt, which takes several times as
// long.
func TestRealStorageLibvirt(t *testing.T) { realStorage(t, true) }

func realStorage(t *testing.T, libvirt bool) {
	cfg := lab.Config{
		Nodes: 3, DeviceMB: 256, Libvirt: libvirt,
		// There is no udev in the nodes, which LVM would wait for.
		Files: map[string]string{"/etc/lvm/lvm.conf": "activation { udev_sync = 0\nudev_rules = 0 }\ndevices { obtain_device_list_from_udev = 0 }\n"},
	}
	lab.Need(t, cfg)
	need := maps.Clone(tools)
	if !libvirt {
		maps.Copy(need, moreTools)
	}
	for program, pkg := range need {
		if _, err := exec.LookPath(program); err != nil {
			t.Errorf("%s is missing: apt-get install %s", program, pkg)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	s := boot(t, cfg)
	s.libvirt = libvirt
	if libvirt {
		// Virtual machines run on nodes 1 and 2. Node 3 is where servers run, and a host that
		// looks on.
		if err := s.Node(3).WaitLibvirt(s.ctx); err != nil { // what is not started yet cannot be ended
			t.Fatal(err)
		}
		if err := s.Node(3).Service(lab.ServiceLibvirt).Kill(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	s.everywhere(t, "modprobe loop; modprobe dm-mod; mkdir -p /mnt /srv /run/lock "+filepath.Dir(own)+"; cat > /tmp/boot; cp /tmp/boot "+own, lab.IdleGuest())
	s.volumeGroup(t)
	for node := 1; node <= 2 && libvirt; node++ {
		if err := s.Node(node).WaitLibvirt(s.ctx); err != nil {
			t.Fatal(err)
		}
		s.create(t, node, lab.Domain{Name: plain, Disks: []lab.Disk{{Path: own}}})
	}
	for _, test := range []struct {
		name  string
		run   func(*testing.T, *suite)
		alone bool // without libvirt only, for which there is no time in 'make test'
	}{
		{"Local", realLocal, true},
		{"Paths", realPaths, true},
		{"NFS", realNFS, false},
		{"CIFS", realCIFS, false},
		{"Ceph", realCeph, true},
		{"Gluster", realGluster, true},
		{"SCSI", realSCSI, false},
		{"ISCSI", realISCSI, false},
		{"NBD", realNBD, false},
		{"DeviceMapper", realMapper, true},
		{"Crypt", realCrypt, false},
		{"MD", realMD, false},
		{"DRBD", realDRBD, false},
		{"GFS2", realGFS2, false},
		{"OCFS2", realOCFS2, false},
		{"LVM", realLVM, false},
	} {
		if libvirt && test.alone {
			continue
		}
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

// everywhere runs a script on all nodes at once.
func (s *suite) everywhere(t *testing.T, script string, stdin []byte) {
	t.Helper()
	var all sync.WaitGroup
	for _, n := range s.Nodes() {
		all.Go(func() {
			res, err := n.Run(s.ctx, lab.Cmd{Args: []string{"sh", "-c", "set -e; " + script}, Stdin: stdin})
			if err != nil || !res.OK() {
				t.Errorf("%s on %s: %v, %v", script, n.Name(), res, err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// together runs scripts on nodes at once, by node.
func (s *suite) together(t *testing.T, scripts map[int]string) {
	t.Helper()
	var all sync.WaitGroup
	for node, script := range scripts {
		all.Go(func() {
			res, err := s.Node(node).Shell(s.ctx, "set -e; "+script)
			if err != nil || !res.OK() {
				t.Errorf("%s on node %d: %v, %v", script, node, res, err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// undo runs a script when the test ends, and only tells of its failure.
func (s *suite) undo(t *testing.T, node int, script string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		defer cancel()
		if res, err := s.Node(node).Shell(ctx, script); err != nil || !res.OK() {
			t.Logf("%s on node %d: %v, %v", script, node, res, err)
		}
	})
}

// bootable makes guests of disks.
func (s *suite) bootable(t *testing.T, node int, paths ...string) {
	t.Helper()
	for _, p := range paths {
		s.sh(t, node, "dd if=/tmp/boot of="+p+" conv=notrunc,fsync status=none")
	}
}

// proof is what prove expects beside.
type proof struct {
	typ   string // identity type on both nodes
	doubt bool
	cache string // QEMU's, see lab.Disk
	start bool   // virtual machines are started with the disks, which takes longer than plugging them in
}

// plain is a virtual machine with a disk of its node, into which others are plugged.
const plain = "plain"

// prove has disks used, by stock libvirt if there is one: what is path on node a and other on node b is one,
// which two do not get; and path on node b is another disk, which may be used at the
// same time.
func (s *suite) prove(t *testing.T, a, b int, path, other string, p proof) {
	t.Helper()
	here, there, equal := s.one(t, a, path), s.one(t, b, other), s.one(t, b, path)
	t.Logf("%s on node %d and %s on node %d are %s; %s on node %d is %s", path, a, other, b, here.Name, path, b, equal.Name)
	if here.Name != there.Name || here.Resource == "" || here.Resource != there.Resource {
		t.Errorf("one disk has the names %s (%s) on node %d and %s (%s) on node %d", here.Name, here.Resource, a, there.Name, there.Resource, b)
	}
	if equal.Name == here.Name || equal.Resource == here.Resource {
		t.Errorf("two disks with the path %s have the name %s", path, here.Name)
	}
	if here.Scope != "cluster" || here.Type != p.typ || here.Doubt != p.doubt || here.ByPath {
		t.Errorf("%+v, and the type %s is wanted, and doubt %v", here, p.typ, p.doubt)
	}
	s.wantDiffer(t, a, path)
	s.capture(t, p.typ, fmt.Sprintf("A disk of type %s under two paths on two hosts, and another one that has the first path on the second host.", p.typ),
		one(a, path, b, other), two(a, path, b, path))
	if !s.libvirt {
		defer s.hold(t, a, path)()
		s.wantHeld(t, b, other)
		s.wantFree(t, b, path)
		s.wantHolder(t, b, other, fmt.Sprintf("hold%d", s.holds))
		return
	}
	if !p.start {
		disk := func(path string) lab.Disk { return lab.Disk{Path: path, Cache: p.cache, Bus: "usb"} }
		s.attach(t, a, disk(path))
		s.attachRefused(t, b, disk(other))
		s.attach(t, b, disk(path))
		s.wantHolder(t, b, other, plain)
		return
	}
	domain := func(name, path string) lab.Domain {
		return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path, Cache: p.cache}}}
	}
	s.create(t, a, domain("first", path))
	s.createRefused(t, b, domain("second", other))
	s.create(t, b, domain("third", path))
	s.wantHolder(t, b, other, "first")
}

// attach plugs a disk into the plain virtual machine of a node, until the test ends.
func (s *suite) attach(t *testing.T, node int, d lab.Disk) {
	t.Helper()
	n := s.Node(node)
	if res, err := n.Attach(s.ctx, plain, d); err != nil || !res.OK() {
		t.Fatalf("plug %s in on node %d: %v, %v", d.Path, node, res, err)
	}
	t.Cleanup(func() {
		if res, err := n.Detach(s.ctx, plain, d); err != nil || !res.OK() {
			t.Errorf("unplug %s on node %d: %v, %v", d.Path, node, res, err)
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		defer cancel()
		err := lab.WaitFor(ctx, d.Path+" to be unplugged", func(ctx context.Context) (bool, error) {
			xml, err := n.DomainXML(ctx, plain)
			return !strings.Contains(xml, "'"+d.Path+"'"), err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func (s *suite) attachRefused(t *testing.T, node int, d lab.Disk) {
	t.Helper()
	res, err := s.Node(node).Attach(s.ctx, plain, d)
	want := fmt.Sprintf("resource busy: Lockspace resource '%s' is locked", d.Path)
	if err != nil || res.OK() || !strings.Contains(res.Stderr, want) {
		t.Fatalf("plug %s in on node %d: not refused with %q: %v, %v", d.Path, node, want, res, err)
	}
	t.Logf("%s", strings.TrimSpace(res.Stderr))
}

// wantDiffer fails unless the table of all nodes marks one that takes a path for
// another disk. A node that is busy may answer too late, and is asked again.
func (s *suite) wantDiffer(t *testing.T, node int, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "all nodes to say which disk it is", func(context.Context) (bool, error) {
		table, status := s.identify(t, node, "--cluster", path)
		if len(table.Missing) != 0 {
			return false, nil
		}
		if status != differ || len(table.Disks) != len(s.Nodes()) {
			t.Errorf("identify --cluster %s: status %d, %+v", path, status, table)
		}
		return true, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// wantHolder fails unless a node says that a virtual machine has a disk. It is asked until all other nodes have answered it.
func (s *suite) wantHolder(t *testing.T, node int, path, vm string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "all nodes to say who has "+path, func(ctx context.Context) (bool, error) {
		res, err := s.Node(node).Exec(ctx, "vmlockctl", "who", path)
		if err == nil && res.OK() && !strings.Contains(res.Stdout, vm) {
			t.Errorf("who has %s on node %d: %v, and it is %s", path, node, res, vm)
		}
		return err == nil && res.OK(), err
	})
	if err != nil {
		t.Error(err)
	}
}
