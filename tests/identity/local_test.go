package identity_test

import (
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// localPlaces are mounts that a node has for itself, and what makes one of each.
var localPlaces = []struct{ fs, dir, mount string }{
	{"tmpfs", "/mnt/tmpfs", "mount -t tmpfs none /mnt/tmpfs"},
	{"ramfs", "/mnt/ramfs", "mount -t ramfs none /mnt/ramfs"},
	{"ext2", "/mnt/ext2", "truncate -s 4M /mnt/tmpfs/ext2; mkfs.ext2 -q /mnt/tmpfs/ext2; mount -t ext2 -o loop /mnt/tmpfs/ext2 /mnt/ext2"},
	{"ext4", "/mnt/ext4", "truncate -s 8M /mnt/tmpfs/ext4; mkfs.ext4 -q /mnt/tmpfs/ext4; mount -t ext4 -o loop /mnt/tmpfs/ext4 /mnt/ext4"},
	{"xfs", "/mnt/xfs", "truncate -s 32M /mnt/tmpfs/xfs; mkfs.xfs -q --unsupported /mnt/tmpfs/xfs; mount -o loop /mnt/tmpfs/xfs /mnt/xfs"},
	{"btrfs", "/mnt/btrfs/sub", "truncate -s 120M /mnt/tmpfs/btrfs; mkfs.btrfs -q /mnt/tmpfs/btrfs; mount -o loop /mnt/tmpfs/btrfs /mnt/btrfs; btrfs -q subvolume create /mnt/btrfs/sub"},
	{"overlay", "/var/tmp", "true"}, // of the root
}

// realLocal: what a host has for itself is the same disk under all its names there, and
// another one on a host that has the same path.
func realLocal(t *testing.T, s *suite) {
	var facts []fact
	for _, p := range localPlaces {
		web, soft := p.dir+"/web.img", p.dir+"/soft"
		s.everywhere(t, "mkdir -p "+p.dir+"; "+p.mount+"; echo x > "+web+"; ln -s web.img "+soft, nil)
		if id := s.one(t, 1, web); id.Type != p.fs || id.Scope != "host" {
			t.Errorf("%s: %+v", p.fs, id)
		}
		release := s.hold(t, 1, web)
		s.wantHeld(t, 1, soft)
		s.wantFree(t, 2, web)
		release()
		facts = append(facts, one(1, web, 1, soft), two(1, web, 2, web))
	}
	// A loop device is its file.
	s.everywhere(t, "losetup /dev/loop5 /mnt/ext4/web.img", nil)
	release := s.hold(t, 1, "/dev/loop5")
	s.wantHeld(t, 1, "/mnt/ext4/web.img")
	s.wantFree(t, 2, "/dev/loop5")
	release()
	s.capture(t, "local", "Files of file systems that a host has for itself, and a loop device over one of them.",
		append(facts, one(1, "/dev/loop5", 1, "/mnt/ext4/web.img"), two(1, "/dev/loop5", 2, "/dev/loop5"))...)
	s.everywhere(t, "losetup -d /dev/loop5; umount /mnt/btrfs; umount /mnt/xfs; umount /mnt/ext4; umount /mnt/ext2; umount /mnt/ramfs; umount /mnt/tmpfs; rm /var/tmp/web.img /var/tmp/soft", nil)
}

// realPaths: where nothing but the path tells what is shared, it is followed to the end.
func realPaths(t *testing.T, s *suite) {
	web, db := lab.SharedDir+"/web.img", lab.SharedDir+"/db.img"
	s.sh(t, 1, "echo x > "+web+"; echo x > "+db)
	s.sh(t, 2, "mkdir -p /mnt/elsewhere; mount --bind "+lab.SharedDir+" /mnt/elsewhere; mknod /dev/other b $(stat -c '0x%t 0x%T' "+lab.Device+"); losetup /dev/loop6 "+web)
	s.undo(t, 2, "losetup -d /dev/loop6; rm /dev/other; umount /mnt/elsewhere")
	release := s.hold(t, 1, web)
	s.wantHeld(t, 2, "/mnt/elsewhere/web.img")
	s.wantHeld(t, 2, "/dev/loop6")
	s.wantFree(t, 2, db)
	release()
	release = s.hold(t, 1, lab.Device)
	s.wantHeld(t, 2, "/dev/other")
	release()
	s.capture(t, "paths", "A folder and a device of User-Mode Linux, of which the kernel tells nothing.",
		one(1, web, 2, "/mnt/elsewhere/web.img"), one(1, web, 2, "/dev/loop6"), two(1, web, 2, db), one(1, lab.Device, 2, "/dev/other"))
}
