package identity_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

const scsiID = "/lib/udev/scsi_id" // which libvirt runs for scsi_lockspace_dir

// lockspaces has stock libvirt make the names, as its plug-in does with directories for
// them in qemu-lockd.conf. They are used as they come: the same name on two nodes is one
// lock, whatever is there, and the directories themselves do not matter.
func lockspaces(t *testing.T, s *suite) {
	for _, what := range []struct{ pkg, program string }{{"lvm2", "lvm"}, {"udev", scsiID}} {
		if _, err := exec.LookPath(what.program); err != nil {
			t.Fatalf("%s is missing: apt-get install %s", what.program, what.pkg)
		}
	}
	path := s.share(t, "hashed.img", lab.IdleGuest())
	other := s.share(t, "hashed2.img", lab.IdleGuest())
	s.private(t, own)
	d := func(name, path string) lab.Domain { return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path}}} }
	t.Cleanup(func() { s.plugin(t, "") })

	for _, test := range []struct{ name, dir string }{
		{"DirectoryOfEachNode", "/var/lib/libvirt/lockd/files"},
		{"SharedDirectory", lab.SharedDir + "/lockd/files"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.plugin(t, "file_lockspace_dir = \""+test.dir+"\"\n")
			s.create(t, 1, d("hashed1", path))
			s.wantNamed(t, 1, "hashed1", test.dir, hashOf(path))
			s.refusedAs(t, 2, d("hashed2", path), hashOf(path))
			// That name is locked, and nothing else.
			in := []string{"vmlockctl", "run", "--lockspace", test.dir, path, "--", "true"}
			s.refusedFor(t, fmt.Sprint(in), hashOf(path), "hashed1", func() (lab.Result, error) {
				res, err := s.Node(2).Exec(s.ctx, in[0], in[1:]...)
				if err == nil && res.Status != runRefused {
					err = fmt.Errorf("exit status %d, not %d", res.Status, runRefused)
				}
				return res, err
			})
			s.wantFree(t, 2, path)
			s.wantHolder(t, 2, path, "hashed1")
			s.create(t, 2, d("hashed3", other)) // another file is another name
			s.destroy(t, 1, "hashed1")
			s.create(t, 2, d("hashed2", path))
			s.wantNamed(t, 2, "hashed2", test.dir, hashOf(path))
			s.refusedAs(t, 1, d("hashed1", path), hashOf(path))
			if test.dir == lab.SharedDir+"/lockd/files" {
				return
			}
			// Two files, of which libvirt has made one name: it stays as it came.
			s.create(t, 1, d("own1", own))
			s.refusedAs(t, 2, d("own2", own), hashOf(own))
			// And so it does after a restart.
			daemon := s.Node(1).Service(lab.ServiceLock)
			if err := daemon.Kill(s.ctx); err != nil {
				t.Fatal(err)
			}
			if err := daemon.Start(s.ctx); err != nil {
				t.Fatal(err)
			}
			s.waitServing(t, 1)
			s.wantNamed(t, 1, "own1", test.dir, hashOf(own))
			s.refusedAs(t, 2, d("own2", own), hashOf(own))
		})
	}
	// Nothing is locked in them, so nobody has made them.
	s.everywhere(t, "! ls -d /var/lib/libvirt/lockd "+lab.SharedDir+"/lockd 2>/dev/null", nil)

	t.Run("Devices", func(t *testing.T) {
		const lvmDir, scsiDir = "/var/lib/libvirt/lockd/lvm", "/var/lib/libvirt/lockd/scsi"
		s.plugin(t, "file_lockspace_dir = \"/var/lib/libvirt/lockd/files\"\nlvm_lockspace_dir = \""+lvmDir+"\"\nscsi_lockspace_dir = \""+scsiDir+"\"\n")
		// There is no udev in the nodes, which LVM would wait for.
		s.everywhere(t, "mkdir -p /etc/lvm; cat > /etc/lvm/lvm.conf; modprobe sd_mod; modprobe scsi_debug dev_size_mb=8; for i in $(seq 100); do [ -b /dev/sda ] && break; sleep 0.1; done; ls /dev/sda",
			[]byte("activation { udev_sync = 0\nudev_rules = 0 }\ndevices { obtain_device_list_from_udev = 0 }\n"))
		s.undo(t, 1, "rmmod scsi_debug; lvm vgremove -q -f vms; lvm pvremove -q "+lab.Device)
		s.undo(t, 2, "rmmod scsi_debug; lvm vgchange -q -an vms")
		s.sh(t, 1, "lvm pvcreate -q -y "+lab.Device+"; lvm vgcreate -q vms "+lab.Device+"; lvm lvcreate -q -Wn -Zn -L4M -n web vms")
		s.sh(t, 2, "lvm lvchange -q -ay vms/web")
		uuid := strings.TrimSpace(s.sh(t, 1, "lvm lvs --noheadings -o uuid vms/web"))
		wwid := strings.TrimSpace(s.sh(t, 1, scsiID+" --replace-whitespace --whitelisted --device /dev/sda"))
		dev := func(name, path string) lab.Domain {
			return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path, Cache: "none"}}}
		}
		// A volume by two paths.
		s.create(t, 1, dev("lv1", "/dev/vms/web"))
		s.wantNamed(t, 1, "lv1", lvmDir, uuid)
		s.refusedAs(t, 2, dev("lv2", "/dev/mapper/vms-web"), uuid)
		s.destroy(t, 1, "lv1")
		s.create(t, 2, dev("lv2", "/dev/mapper/vms-web"))
		s.create(t, 1, dev("unit1", "/dev/sda"))
		s.wantNamed(t, 1, "unit1", scsiDir, wwid)
		s.refusedAs(t, 2, dev("unit2", "/dev/sda"), wwid)
	})
}

// hashOf is the name that libvirt gives a path in file_lockspace_dir.
func hashOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:])
}

// plugin configures libvirt's plug-in on all nodes, beyond what the lab has.
func (s *suite) plugin(t *testing.T, text string) {
	t.Helper()
	for _, n := range s.Nodes() {
		if err := n.WriteFile(s.ctx, "/etc/libvirt/qemu-lockd.conf", []byte("auto_disk_leases = 1\n"+text), 0o644); err != nil {
			t.Fatal(err)
		}
		libvirt := n.Service(lab.ServiceLibvirt)
		if err := libvirt.Stop(s.ctx); err != nil {
			t.Fatal(err)
		}
		if err := libvirt.Start(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range s.Nodes() {
		if err := n.WaitLibvirt(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// wantNamed fails unless a virtual machine has one lock, of this name.
func (s *suite) wantNamed(t *testing.T, node int, vm, lockspace, name string) {
	t.Helper()
	found := 0
	for _, h := range s.holders(t, node) {
		if h.VM != vm {
			continue
		}
		found++
		if h.Lockspace != lockspace || h.Resource != name || h.Mode != "exclusive" {
			t.Errorf("%s has %+v, want %s in %s", vm, h, name, lockspace)
		}
	}
	if found != 1 {
		t.Errorf("%s has %d locks", vm, found)
	}
}

// refusedAs is createRefused where libvirt asks for another name than the path.
func (s *suite) refusedAs(t *testing.T, node int, d lab.Domain, name string) {
	t.Helper()
	res, err := s.Node(node).Create(s.ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if want := "resource busy: Lockspace resource '" + name + "' is locked"; res.OK() || !strings.Contains(res.Stderr, want) {
		t.Fatalf("start %s on node %d: not refused with %q: %v", d.Name, node, want, res)
	}
	t.Logf("%s", strings.TrimSpace(res.Stderr))
}
