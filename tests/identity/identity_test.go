package identity_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// config has the rules that the tests need, and is the same on all nodes. What a
// disk is called does not depend on a guard; that it leaves alone what other hosts
// cannot use is in tests/guard.
const config = `backend = "cluster"
guard.mode = "off"

[[identity.rule]]
path = "/srv/shared/ruled/**"
scope = "cluster"
name = "ruled/{rest}"

[[identity.rule]]
path = "/mnt/ruled/**"
scope = "cluster"
name = "ruled/{rest}"
`

// TestIdentity boots two nodes with a device and a folder that both have.
func TestIdentity(t *testing.T) {
	s := boot(t, lab.Config{Nodes: 2, DeviceMB: 16, Libvirt: true, Modules: []string{"dm-mod", "loop"}})
	s.libvirt = true
	for _, n := range s.Nodes() {
		if err := n.WaitLibvirt(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"PrivatePaths", privatePaths},
		{"PrivateOverlay", privateOverlay},
		{"PrivateSurvivesTheDaemon", privateSurvives},
		{"PrivateUnderOtherNames", privateOtherNames},
		{"SharedDeviceUnderOtherPath", deviceOtherPath},
		{"SharedFileUnderOtherPath", fileOtherPath},
		{"RenamedWhileHeld", renamedWhileHeld},
		{"DeviceMapperUUID", mapperUUID},
		{"DeviceMapperWithoutUUID", mapperNoUUID},
		{"DeviceRemappedWhileHeld", remappedWhileHeld},
		{"LogicalVolumes", logicalVolumes},
		{"Loop", loop},
		{"Rules", rules},
		{"RulesDiffer", rulesDiffer},
		{"Overlays", overlays},
		{"Suspended", suspended},
		{"InDoubt", inDoubt},
		{"Lockspaces", lockspaces}, // last: it has libvirt make other names
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

const own = "/var/lib/libvirt/images/own.img"

// private makes a file of one path on both nodes, which are two files.
func (s *suite) private(t *testing.T, path string) {
	t.Helper()
	for _, n := range s.Nodes() {
		if err := n.WriteFile(s.ctx, path, lab.IdleGuest(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Two virtual machines with equal paths on disks of their hosts both run.
func privatePaths(t *testing.T, s *suite) {
	s.sh(t, 1, "mkdir -p "+filepath.Dir(own))
	s.sh(t, 2, "mkdir -p "+filepath.Dir(own))
	s.private(t, own)
	d := func(name string) lab.Domain { return lab.Domain{Name: name, Disks: []lab.Disk{{Path: own}}} }
	s.create(t, 1, d("one"))
	s.create(t, 2, d("two"))
	s.createRefused(t, 1, d("three"))
	all := s.complete(t, 1, "ls", "--cluster")
	if !all.OK() || !strings.Contains(all.Stdout, "one") || !strings.Contains(all.Stdout, "two") {
		t.Errorf("not both are listed: %v", all)
	}
	if id, status := s.identify(t, 1, "--cluster", own); status != 0 || len(id.Disks) != 2 || id.Disks[0].Scope != "host" || id.Disks[1].Scope != "host" ||
		id.Disks[0].Resource == id.Disks[1].Resource || id.Disks[0].Type != "tmpfs" || id.Disks[1].Type != "tmpfs" {
		t.Errorf("status %d, %+v", status, id)
	}
}

// And so they do where the paths are on the root of each node, an overlay over one file
// system that all nodes have.
func privateOverlay(t *testing.T, s *suite) {
	const path, link = "/opt/own.img", "/opt/link.img"
	s.private(t, path)
	s.everywhere(t, "ln -sf own.img "+link, nil)
	d := func(name, path string) lab.Domain { return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path}}} }
	s.create(t, 1, d("one", path))
	s.create(t, 2, d("two", path))
	s.createRefused(t, 1, d("three", path))
	s.createRefused(t, 2, d("four", link))
	id, status := s.identify(t, 1, "--cluster", path)
	if status != 0 || len(id.Disks) != 2 || id.Disks[0].Resource == id.Disks[1].Resource {
		t.Errorf("status %d, %+v", status, id)
	}
	for _, disk := range id.Disks {
		if disk.Type != "overlay" || disk.Scope != "host" || !strings.HasPrefix(disk.Name, "overlay ") {
			t.Errorf("%+v", disk)
		}
	}
	// So it is with what no node has written yet.
	if id := s.one(t, 1, "/bin/sh"); id.Type != "overlay" || id.Scope != "host" || !strings.HasPrefix(id.Name, "overlay ") {
		t.Errorf("%+v", id)
	}
}

func privateSurvives(t *testing.T, s *suite) {
	s.private(t, own)
	release := s.hold(t, 1, own)
	before := s.one(t, 1, own).Resource
	daemon := s.Node(1).Service("vmlockd")
	if err := daemon.Kill(s.ctx); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the daemon to be back", func(ctx context.Context) (bool, error) {
		res, err := s.Node(1).Exec(ctx, "vmlockctl", "status")
		return err == nil && res.OK(), err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.wantHeld(t, 1, own)
	s.wantFree(t, 2, own)
	if after := s.one(t, 1, own).Resource; after != before {
		t.Errorf("it was %s before the daemon was killed, and is %s", before, after)
	}
	release()
	s.wantFree(t, 1, own)
}

func privateOtherNames(t *testing.T, s *suite) {
	s.private(t, own)
	s.sh(t, 1, "mkdir -p /mnt/bound; mount --bind "+filepath.Dir(own)+" /mnt/bound; ln -sf "+own+" /tmp/soft.img; ln -f "+own+" "+own+".hard")
	defer s.sh(t, 1, "umount /mnt/bound; rm /tmp/soft.img "+own+".hard")
	s.hold(t, 1, own)
	for _, path := range []string{"/mnt/bound/own.img", "/tmp/soft.img", own + ".hard", "/var/lib/../lib/libvirt/images/own.img"} {
		s.wantHeld(t, 1, path)
	}
}

// One device of both nodes, whose node in /dev is called otherwise on one.
func deviceOtherPath(t *testing.T, s *suite) {
	s.sh(t, 2, "rm -f /dev/other; mknod /dev/other b $(stat -c '0x%t 0x%T' "+lab.Device+")")
	if err := s.Node(1).WriteFile(s.ctx, "/tmp/boot", lab.IdleGuest(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sh(t, 1, "dd if=/tmp/boot of="+lab.Device+" conv=notrunc,fsync status=none")
	d := func(name, path string) lab.Domain {
		return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path, Cache: "none"}}}
	}
	s.create(t, 1, d("lun1", lab.Device))
	s.createRefused(t, 2, d("lun2", lab.Device))
	s.createRefused(t, 2, d("lun3", "/dev/other"))
	s.wantHolder(t, 2, "/dev/other", "lun1") // under another name
}

// One file of both nodes below a bind mount, and behind a link.
func fileOtherPath(t *testing.T, s *suite) {
	path := lab.SharedDir + "/bound.img"
	if err := os.WriteFile(filepath.Join(s.Shared(), "bound.img"), lab.IdleGuest(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sh(t, 2, "mkdir -p /mnt/elsewhere; mount --bind "+lab.SharedDir+" /mnt/elsewhere; ln -sfn "+lab.SharedDir+" /mnt/linked")
	defer s.sh(t, 2, "umount /mnt/elsewhere; rm /mnt/linked")
	d := func(name, path string) lab.Domain { return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path}}} }
	s.create(t, 1, d("file1", path))
	s.createRefused(t, 2, d("file2", "/mnt/elsewhere/bound.img"))
	s.createRefused(t, 2, d("file3", "/mnt/linked/bound.img"))
	if id := s.one(t, 1, path); id.Scope != "cluster" || !id.Doubt || id.Type != "hostfs" {
		t.Errorf("a file system of which nothing is known: %+v", id)
	}
}

func renamedWhileHeld(t *testing.T, s *suite) {
	path := lab.SharedDir + "/before.img"
	s.sh(t, 1, "rm -f "+lab.SharedDir+"/after.img; echo x > "+path)
	release := s.hold(t, 1, path)
	s.sh(t, 1, "mv "+path+" "+lab.SharedDir+"/after.img; echo y > "+path)
	s.wantHeld(t, 1, lab.SharedDir+"/after.img")
	s.wantHolder(t, 1, lab.SharedDir+"/after.img", fmt.Sprintf("hold%d", s.holds)) // a start on it is refused, and it is told why
	s.wantHeld(t, 2, path)                                                         // that name is held, whatever has it now
	release()
	s.wantFree(t, 1, lab.SharedDir+"/after.img")
	s.wantFree(t, 2, path)
}

// table makes a device over a part of the shared one, in sectors.
func (s *suite) table(t *testing.T, node int, name, uuid string, start, sectors int) {
	t.Helper()
	if uuid != "" {
		uuid = "--uuid '" + uuid + "' "
	}
	s.sh(t, node, fmt.Sprintf("DM_DISABLE_UDEV=1 dmsetup create %s%s --table '0 %d linear %s %d'", uuid, name, sectors, lab.Device, start))
	t.Cleanup(func() { s.sh(t, node, "DM_DISABLE_UDEV=1 dmsetup remove --retry "+name) })
}

// One UUID under two names is a disk, two UUIDs under one name are two.
func mapperUUID(t *testing.T, s *suite) {
	s.table(t, 1, "here", "site-a", 0, 2048)
	s.table(t, 2, "there", "site-a", 0, 2048)
	s.table(t, 2, "here", "site-b", 2048, 2048)
	s.everywhere(t, "cat > /tmp/boot", lab.IdleGuest())
	s.bootable(t, 1, "/dev/mapper/here")
	s.bootable(t, 2, "/dev/mapper/here")
	s.prove(t, 1, 2, "/dev/mapper/here", "/dev/mapper/there", proof{typ: "dm", cache: "none", start: true})
}

// Without one, all that lies upon the same device is one.
func mapperNoUUID(t *testing.T, s *suite) {
	s.table(t, 1, "plain1", "", 0, 2048)
	s.table(t, 2, "plain2", "", 0, 2048)
	s.hold(t, 1, "/dev/mapper/plain1")
	s.wantHeld(t, 2, "/dev/mapper/plain2")
}

// A name that leads to another device by now does not take the lock along.
func remappedWhileHeld(t *testing.T, s *suite) {
	s.table(t, 2, "first", "site-first", 0, 2048)
	s.sh(t, 1, "DM_DISABLE_UDEV=1 dmsetup create --uuid site-first moving --table '0 2048 linear "+lab.Device+" 0'")
	release := s.hold(t, 1, "/dev/mapper/moving")
	s.sh(t, 1, "DM_DISABLE_UDEV=1 dmsetup remove --retry moving; DM_DISABLE_UDEV=1 dmsetup create --uuid site-second moving --table '0 2048 linear "+lab.Device+" 2048'")
	t.Cleanup(func() { s.sh(t, 1, "DM_DISABLE_UDEV=1 dmsetup remove --retry moving") })
	s.table(t, 2, "second", "site-second", 2048, 2048)
	s.wantHeld(t, 2, "/dev/mapper/first")
	s.wantFree(t, 2, "/dev/mapper/second")
	s.wantHeld(t, 1, "/dev/mapper/moving") // the name is held, and stays with what it was held for
	release()
	s.wantFree(t, 2, "/dev/mapper/first")
}

// numbersDiffer fails if a device has the same minor number on nodes 1 and 2: then that
// it is one disk would show nothing about its name.
func (s *suite) numbersDiffer(t *testing.T, first, second string) {
	t.Helper()
	one, two := s.sh(t, 1, "stat -Lc %T "+first), s.sh(t, 2, "stat -Lc %T "+second)
	if one == two {
		t.Errorf("%s on node 1 and %s on node 2 both have the minor number %s: make them in another order", first, second, strings.TrimSpace(one))
	}
}

// The UUIDs are LVM's, as it makes them; TestRealStorage has LVM itself.
func logicalVolumes(t *testing.T, s *suite) {
	const vg, web, db = "Q3cwEkfJgCd8SUEYyVnrR7vVYlf3XqWx", "Ae1LhKpYV7bTq0DLmRzvfPzL6sJc2XkU", "Be1LhKpYV7bTq0DLmRzvfPzL6sJc2XkU"
	s.table(t, 1, "vg-web", "LVM-"+vg+web, 0, 2048)
	s.table(t, 2, "vg-db", "LVM-"+vg+db, 2048, 2048)
	s.table(t, 2, "vg-web", "LVM-"+vg+web, 0, 2048)
	s.hold(t, 1, "/dev/mapper/vg-web")
	s.wantHeld(t, 2, "/dev/mapper/vg-web")
	s.wantFree(t, 2, "/dev/mapper/vg-db")
	if id := s.one(t, 2, "/dev/mapper/vg-web"); id.Type != "lvm" || id.Name != "lvm:"+vg+"/"+web {
		t.Errorf("%+v", id)
	}
	s.numbersDiffer(t, "/dev/mapper/vg-web", "/dev/mapper/vg-web")
}

// A loop device is its file.
func loop(t *testing.T, s *suite) {
	s.private(t, own)
	var devices [3]string
	for node := 1; node <= 2; node++ {
		devices[node] = strings.TrimSpace(s.sh(t, node, "losetup -f --show "+own))
		t.Cleanup(func() { s.sh(t, node, "losetup -d "+devices[node]) })
	}
	s.hold(t, 1, devices[1])
	s.wantHeld(t, 1, own)
	s.wantFree(t, 2, devices[2])
	s.wantFree(t, 2, own)
}

// The shared folder is mounted once more elsewhere, which nobody but a rule can
// know.
func rules(t *testing.T, s *suite) {
	if err := os.MkdirAll(filepath.Join(s.Shared(), "ruled"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Shared(), "ruled", "a.img"), lab.IdleGuest(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sh(t, 2, `opts=$(awk '$5 == "`+lab.SharedDir+`" { sub(".* - hostfs [^ ]* ", ""); sub("^[a-z]*,", ""); print }' /proc/self/mountinfo)
		mkdir -p /mnt/ruled; mount -t hostfs -o "$opts/ruled" none /mnt/ruled`)
	defer s.sh(t, 2, "umount /mnt/ruled")
	if out := s.sh(t, 2, "ls /mnt/ruled"); strings.TrimSpace(out) != "a.img" {
		t.Fatalf("the second mount has %q", out)
	}
	s.hold(t, 1, lab.SharedDir+"/ruled/a.img")
	s.wantHeld(t, 2, "/mnt/ruled/a.img")
	if st := s.sh(t, 1, "vmlockctl status"); strings.Contains(st, "name disks by other rules") {
		t.Errorf("the nodes have the same rules, and:\n%s", st)
	}
}

// A node with other rules may have two names for one disk, and all nodes say so.
func rulesDiffer(t *testing.T, s *suite) {
	const path = "/etc/vmlockd/vmlockd.toml"
	daemon := s.Node(2).Service("vmlockd")
	with := func(text string) {
		if err := s.Node(2).WriteFile(s.ctx, path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := daemon.Kill(s.ctx); err != nil {
			t.Fatal(err)
		}
		if err := daemon.Start(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	say := func(what string, want bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		defer cancel()
		last := ""
		err := lab.WaitFor(ctx, what, func(ctx context.Context) (bool, error) {
			for _, n := range s.Nodes() {
				res, err := n.Exec(ctx, "vmlockctl", "status")
				if err != nil {
					return false, err
				}
				last = res.String()
				if strings.Contains(last, "name disks by other rules") != want || !strings.Contains(last, "node1") || !strings.Contains(last, "node2") {
					return false, nil
				}
			}
			return true, nil
		})
		if err != nil {
			t.Errorf("%v; the last: %s", err, last)
		}
	}
	with(strings.Replace(config, "ruled/{rest}", "other/{rest}", 1))
	say("both nodes to warn", true)
	with(config)
	say("the warning to be over", false)
	s.waitServing(t, 2) // it says how it is before it grants
}
