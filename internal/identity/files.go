package identity

import (
	"fmt"
	"math/bits"
	"path"
	"strconv"
	"strings"
)

// localFS are file systems that only this host has mounted, on a device or in its
// memory. An overlay belongs to them also if what is below it is shared: what is
// written goes into its upper layer, which two hosts must not have in common
// (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems").
var localFS = func() map[string]bool {
	m := map[string]bool{}
	for _, fs := range strings.Fields(`ext2 ext3 ext4 xfs btrfs bcachefs f2fs jfs reiserfs nilfs2 zfs vfat msdos exfat ntfs ntfs3
		fuseblk udf hfs hfsplus minix iso9660 squashfs erofs romfs cramfs tmpfs ramfs devtmpfs rootfs overlay`) {
		m[fs] = true
	}
	return m
}()

// file names a file by its file system. A directory or anything else that is no
// device is taken for a file.
func (l *lookup) file(id *Identity, n node, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: more than %d devices and files lie upon one another", ErrContradiction, maxDepth)
	}
	id.Local = fmt.Sprintf("file %s %d", n.dev, n.ino)
	table, err := l.host.mounts(false)
	if err == nil && table.byID[n.mount] == nil {
		table, err = l.host.mounts(true)
	}
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	m := table.of(n)
	if m == nil {
		id.Type = TypeUnknown
		id.byPath("its mount is not in this process's mountinfo")
		return nil
	}
	id.Type = m.fs
	id.step("%s is inode %d of the %s file system of %s, mounted at %s", n.path, n.ino, m.fs, m.source, m.point)
	if m.fs == "overlay" {
		return l.overlay(id, m, n)
	}
	if localFS[m.fs] {
		id.Scope, id.Name = Host, id.Local
		id.step("a file system of type %s is of this host alone", m.fs)
		return nil
	}
	f := shared[m.fs]
	if f == nil {
		id.Path = table.first(m, id.Path)
		id.byPath(fmt.Sprintf("whether a file system of type %s is shared with other hosts is not known", m.fs))
		return nil
	}
	name, why, err := f(l, m, n)
	switch {
	case err != nil:
		return err
	case name == "":
		id.Path = table.first(m, id.Path)
		id.byPath("this file system is shared, and does not tell which one it is: " + why)
	default:
		id.Scope, id.Name = Cluster, name
		id.ByPath = inShare(name)
		id.Doubt = id.ByPath // another host may have mounted it with serverino
		id.step("%s", why)
	}
	return nil
}

// of is the mount that a file was found on. One of another mount namespace is not
// in the table, but maybe another mount of the same file system.
func (t *mountTable) of(n node) *mount {
	if m := t.byID[n.mount]; m != nil {
		return m
	}
	for _, m := range t.list {
		if m.dev == n.dev {
			return m
		}
	}
	return nil
}

// shared are file systems that several hosts mount, and how their files are named:
// without anything in which two hosts that mount the same one may differ, such as
// the name of a server. With no name, why says what is missing.
var shared = map[string]func(l *lookup, m *mount, n node) (name, why string, err error){
	"nfs":            (*lookup).nfs,
	"nfs4":           (*lookup).nfs,
	"ceph":           (*lookup).ceph,
	"ocfs2":          (*lookup).ocfs2,
	"gfs2":           (*lookup).gfs2,
	"fuse.glusterfs": byInode("gluster", "GlusterFS makes the number of an inode of its gfid, which no other file has"),
	"beegfs":         byInode("beegfs", "BeeGFS makes the number of an inode of its entry's id, which no other file has"),
	"lustre":         (*lookup).lustre,
	"cifs":           (*lookup).cifs,
	"smb3":           (*lookup).cifs,
}

// byInode is for file systems whose inode numbers are the same on all hosts, and
// are not used by another file system of that type either.
func byInode(kind, why string) func(*lookup, *mount, node) (string, string, error) {
	return func(_ *lookup, _ *mount, n node) (string, string, error) {
		return fmt.Sprintf("%s:%d", kind, n.ino), why, nil
	}
}

// nfs names a file by the numbers that the server gives to its file system and to
// the file: they are the same whatever name or address of the server a host has
// mounted, and wherever. Two servers with the same numbers for two file systems, as
// with fsid=0 in exports(5), have the same names: then two disks count as one.
//
// The kernel lists file systems by device number in nfsfs/volumes
// (nfs_volume_list_show in fs/nfs/client.c).
func (l *lookup) nfs(_ *mount, n node) (string, string, error) {
	lines := strings.Split(l.read("/proc/fs/nfsfs/volumes"), "\n")
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) < 5 || f[3] != n.dev.String() {
			continue
		}
		fsid, err := nfsFSID(f[4])
		if err != nil {
			return "", "", fmt.Errorf("%w: the fsid of NFS in /proc/fs/nfsfs/volumes: %w", ErrContradiction, err)
		}
		return fmt.Sprintf("nfs:%016x:%d", fsid, n.ino), fmt.Sprintf("the NFS server calls this file system %s (fsid) and the file %d (fileid), under whichever name it is mounted", f[4], n.ino), nil
	}
	return "", "device " + n.dev.String() + " is not in /proc/fs/nfsfs/volumes", nil
}

// nfsFSID is equal for the two numbers that NFSv4 has and the one of NFSv3, which
// Linux's server makes by xor of the two halves of the UUID, in its own byte order
// (encode_fsid in fs/nfsd/nfs3xdr.c). Two equal numbers are no UUID, but what somebody
// has configured, as with Ganesha's Filesystem_Id = 152.152: xor would make one of all.
func nfsFSID(text string) (uint64, error) {
	major, minor, _ := strings.Cut(text, ":")
	a, err := strconv.ParseUint(major, 16, 64)
	if err != nil {
		return 0, err
	}
	b, err := strconv.ParseUint(minor, 16, 64)
	if err != nil {
		return 0, err
	}
	folded := a ^ b
	if a == b {
		folded = a
	}
	return min(folded, bits.ReverseBytes64(folded)), nil
}

// ocfs2: ocfs2_statfs in fs/ocfs2/super.c makes the number of the volume's UUID.
func (l *lookup) ocfs2(_ *mount, n node) (string, string, error) {
	fsid, err := l.host.fsid(n.path)
	if err != nil {
		return "", "", err
	}
	if fsid == 0 {
		return "", "statfs(2) has no fsid", nil
	}
	return fmt.Sprintf("ocfs2:%016x:%d", fsid, n.ino), "statfs(2) tells the volume's UUID", nil
}

// gfs2: fs/gfs2/sys.c.
func (l *lookup) gfs2(_ *mount, n node) (string, string, error) {
	const dir = "/sys/fs/gfs2"
	names, err := l.list(dir)
	if err != nil {
		return "", "", err
	}
	for _, table := range names {
		if l.read(dir, table, "id") != n.dev.String() {
			continue
		}
		uuid := hexDigits(l.read(dir, table, "uuid"))
		if len(uuid) != 32 {
			uuid = table // which is the same on all hosts as well
		}
		return fmt.Sprintf("gfs2:%s:%d", uuid, n.ino), "sysfs tells the UUID of " + table, nil
	}
	return "", "device " + n.dev.String() + " is not in " + dir, nil
}

// lustre: the source is MGSNODE[:MGSNODE...]:/FSNAME[/DIR].
func (l *lookup) lustre(m *mount, n node) (string, string, error) {
	_, after, ok := strings.Cut(m.source, ":/")
	fsname, _, _ := strings.Cut(after, "/")
	if !ok || fsname == "" {
		return "", "its source is " + m.source, nil
	}
	return fmt.Sprintf("lustre:%s:%d", fsname, n.ino), "Lustre makes the number of an inode of its FID, which is unique in " + fsname, nil
}

// cifs: without serverino the client makes up inode numbers, and the path in the
// share is what is left. Upper and lower case are the same there. The client also
// stops using the server's numbers by itself where they do not work, and mountinfo
// has no serverino then (cifs_autodisable_serverino in fs/smb/client/misc.c).
func (l *lookup) cifs(m *mount, n node) (string, string, error) {
	parts := strings.FieldsFunc(m.source, func(c rune) bool { return c == '/' || c == '\\' })
	if len(parts) < 2 {
		return "", "its source is " + m.source, nil
	}
	share := strings.ToLower(parts[1])
	if _, ok := m.option("serverino"); ok {
		return fmt.Sprintf("cifs:%s:%d", share, n.ino), "the server has given the file this number (serverino); the share's name counts, and the server's does not", nil
	}
	in, ok := m.inside(n.path)
	if !ok {
		return "", n.path + " is not below " + m.point, nil
	}
	// What of a share is mounted is in the source, in mountinfo's root, or in both.
	if top := "/" + strings.Join(parts[2:], "/"); !below(top, in) {
		in = path.Join(top, in)
	}
	return "cifs:" + share + ":" + strings.ToLower(in), "the server's numbers for files are not used (noserverino), so it is the path in the share; to a host that uses them it is another disk", nil
}

// inShare says that a name is a path in a share of CIFS: made of a path, but of one
// that is the same wherever the share is mounted.
func inShare(name string) bool {
	share, ok := strings.CutPrefix(name, "cifs:")
	_, in, _ := strings.Cut(share, ":")
	return ok && strings.HasPrefix(in, "/")
}
