package identity

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEveryKind has, for each kind of device and file system whose disks have names, one
// as two hosts have it, and another one that the second host has where the first one
// has it. Two of this host alone are told apart by their scope.
func TestEveryKind(t *testing.T) {
	const there = "otherhost"
	covered := map[string]bool{}
	worlds := map[string]*Resolver{}
	find := func(file, path string) Identity {
		t.Helper()
		if worlds[file] == nil {
			worlds[file] = newResolver(loadWorld(t, "testdata/"+file+".txtar"), Options{})
		}
		return identify(t, worlds[file], path)
	}
	for _, tc := range []struct {
		typ, file, here, elsewhere, another string
		doubt                               bool
	}{
		{TypeLVM, "lvm", "/dev/vg0/web", "/dev/vgnew/webdisk", "/dev/vg0/web", false},
		{TypeSCSI, "scsi", "/dev/sdb", "/dev/sdq", "/dev/sdb", false},
		{TypeSCSI, "scsi", "/dev/sdb1", "/dev/sdq1", "/dev/sdq2", false},
		{TypeMultipath, "scsi", "/dev/mapper/mpatha", "/dev/mapper/3600140512345678901234567890abcde", "/dev/mapper/mpatha", false},
		{TypeISCSI, "scsi", "/dev/sdf", "/dev/sdx", "/dev/sdf", false},
		{TypeNVMe, "devices", "/dev/nvme0n1", "/dev/nvme3n2", "/dev/nvme0n1", false},
		{TypeNVMe, "devices", "/dev/nvme0n1p2", "/dev/nvme3n2p2", "/dev/nvme3n2", false},
		{TypeDRBD, "devices", "/dev/drbd7", "/dev/drbd1", "/dev/drbd7", false},
		{TypeRBD, "devices", "/dev/rbd0", "/dev/rbd5", "/dev/rbd0", false},
		{TypeRBD, "devices", "/dev/rbd0", "/dev/rbd5", "/dev/rbd6", false}, // its snapshot
		{TypeNBD, "devices", "/dev/nbd0", "/dev/nbd9", "/dev/nbd0", true},
		{TypeMD, "devices", "/dev/md127", "/dev/md0", "/dev/md127", false},
		{TypeMD, "devices", "/dev/md123", "/dev/md9", "/dev/md127", false}, // metadata 0.90, told by udev and by the kernel
		{TypeMapper, "mapper", "/dev/mapper/own", "/dev/mapper/theirs", "/dev/mapper/own", false},
		{TypeCrypt, "mapper", "/dev/mapper/luks-here", "/dev/mapper/luks-elsewhere", "/dev/mapper/luks-here", false},
		{TypeLoop, "devices", "/dev/loop3", "/dev/loop8", "/dev/loop3", false},
		{"nfs4", "shared", "/mnt/a/web.img", "/opt/vm/web.img", "/mnt/a/web.img", false},
		{"nfs", "shared", "/srv/v3/web.img", "/opt/v3/web.img", "/srv/v3/web.img", false},
		{"ceph", "shared", "/cephxattr/web.img", "/opt/ceph/web.img", "/cephxattr/web.img", false},
		{"ocfs2", "shared", "/ocfs2/web.img", "/opt/ocfs2/web.img", "/ocfs2/web.img", false},
		{"gfs2", "shared", "/gfs2/web.img", "/opt/gfs2/web.img", "/gfs2/web.img", false},
		{"fuse.glusterfs", "shared", "/gluster/web.img", "/opt/gluster/web.img", "/gluster/web.img", false},
		{"beegfs", "shared", "/beegfs/web.img", "/opt/beegfs/web.img", "/beegfs/web.img", false},
		{"lustre", "shared", "/lustre/web.img", "/opt/lustre/web.img", "/lustre/web.img", false},
		{"cifs", "shared", "/cifs/Web.img", "/opt/cifs/Web.img", "/cifs/Web.img", false},
		{"smb3", "shared", "/smb3/Web.img", "/opt/smb3/Web.img", "/smb3/Web.img", false},
	} {
		covered[tc.typ] = true
		one, two, other := find(tc.file, tc.here), find(there, tc.elsewhere), find(there, tc.another)
		if one.Name != two.Name || one.Scope != Cluster || two.Scope != Cluster {
			t.Errorf("%s: %s is %s (%s), and on another host, as %s, %s (%s)", tc.typ, tc.here, one.Name, one.Scope, tc.elsewhere, two.Name, two.Scope)
		}
		if one.Type != tc.typ || one.Doubt != tc.doubt || one.ByPath || two.Type != tc.typ && tc.typ != TypeMultipath {
			t.Errorf("%s: %+v, and on another host %+v", tc.typ, one, two)
		}
		if other.Scope == Cluster && other.Name == one.Name {
			t.Errorf("%s: %s, and on another host another disk at %s, are both %s", tc.typ, tc.here, tc.another, one.Name)
		}
	}
	// Whether it is reached by iSCSI, by Fibre Channel or over several paths, a unit is one.
	for _, path := range []string{"/dev/sdq", "/dev/sdy", "/dev/mapper/3600140512345678901234567890abcde"} {
		if got := find(there, path).Name; got != find("scsi", "/dev/sdb").Name {
			t.Errorf("%s is %s", path, got)
		}
	}
	for _, typ := range slices.Concat(DeviceTypes(), slices.Sorted(maps.Keys(shared))) {
		if !covered[typ] && typ != TypeBlock { // of which nothing is known
			t.Errorf("there are no two hosts with a disk of type %s here", typ)
		}
	}
	// Written out, as one that is missed would count in the whole cluster, by its path.
	for _, fs := range strings.Fields(`ext2 ext3 ext4 xfs btrfs bcachefs f2fs jfs reiserfs nilfs2 zfs vfat msdos exfat ntfs ntfs3
		fuseblk udf hfs hfsplus minix iso9660 squashfs erofs romfs cramfs tmpfs ramfs devtmpfs rootfs overlay`) {
		w := &world{nodes: map[string]node{"/a.img": {path: "/a.img", mode: unix.S_IFREG, dev: number{0, 50}, ino: 7, mount: 30}}}
		var err error
		if w.table, err = parseMounts([]byte("30 1 0:50 / / rw - " + fs + " none rw\n")); err != nil {
			t.Fatal(err)
		}
		want := "file 0:50 7"
		if fs == "overlay" {
			want = "overlay 0:50 /a.img"
		}
		if id := identify(t, newResolver(w, Options{}), "/a.img"); id.Scope != Host || id.Name != want || id.Type != fs || id.Doubt {
			t.Errorf("%s: %+v", fs, id)
		}
	}
	if len(localFS) != 31 {
		t.Errorf("there are %d local file systems, and not all are tried", len(localFS))
	}
	for fs := range localFS {
		if shared[fs] != nil {
			t.Errorf("%s is of one host alone and of several", fs)
		}
	}
}
