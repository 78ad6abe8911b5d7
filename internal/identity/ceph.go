package identity

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// A file of CephFS is named by its inode and by the fsid of its Ceph cluster, of
// which 32 bits are left: the exclusive or of its four words, little endian. That is
// all that each kernel tells. It does not tell two file systems of one cluster apart:
// which one it is, is known only where the mount has its name (mds_namespace=).
func (l *lookup) ceph(_ *mount, n node) (string, string, error) {
	cluster, why, err := l.cephCluster(n.path)
	if err != nil || cluster == 0 {
		return "", why, err
	}
	return fmt.Sprintf("ceph:%08x:%d", cluster, n.ino), why, nil
}

// cephCluster is 0 if nothing is told. The attribute is there since Linux 5.11
// (ceph_vxattrcb_cluster_fsid in fs/ceph/xattr.c), and no server is asked for it.
func (l *lookup) cephCluster(path string) (cluster uint32, why string, err error) {
	uuid, err := l.host.xattr(path, "ceph.cluster_fsid")
	if err != nil {
		return 0, "", err
	}
	if uuid != "" {
		cluster, err = foldUUID(uuid)
		return cluster, fmt.Sprintf("it is in the Ceph cluster %s, which has given it this inode number", uuid), err
	}
	fsid, err := l.host.fsid(path)
	if err != nil {
		return 0, "", err
	}
	if fsid == 0 {
		return 0, "statfs(2) has no fsid", nil
	}
	cluster, err = cephStatfs(fsid)
	return cluster, "the Ceph cluster, which statfs(2) tells, has given it this inode number", err
}

// foldUUID is the exclusive or of the four words of a UUID.
func foldUUID(text string) (uint32, error) {
	b, err := hex.DecodeString(hexDigits(text))
	if err != nil || len(b) != 16 {
		return 0, fmt.Errorf("%w: the kernel says that its Ceph cluster is %q, and that is no UUID", ErrContradiction, text)
	}
	word := binary.LittleEndian.Uint32
	return word(b) ^ word(b[4:]) ^ word(b[8:]) ^ word(b[12:]), nil
}

// What ceph_statfs in fs/ceph/super.c has in the upper half of f_fsid, since "ceph:
// properly handle statfs on multifs setups" (Linux 5.16, and later ones of 5.10 and 5.15): the number
// of the file system if the mount has its name, and CEPH_FS_CLUSTER_ID_NONE if not. A
// cluster counts the file systems that are made in it, from 1.
const (
	cephNoNumber  = 1<<32 - 1
	cephMaxNumber = 1023    // up to here it is one for sure, but for one cluster in 4 million
	cephNoMore    = 1 << 20 // and from here on none
)

// cephStatfs is the cluster in f_fsid. The lower half is the exclusive or of all four
// words since then. Before, the halves are those of the first and third word, and of
// the second and fourth, so that both together are the same. Which one it is depends
// on no kernel's version alone, as distributions have taken the change over.
func cephStatfs(fsid uint64) (uint32, error) {
	low, high := uint32(fsid), uint32(fsid>>32)
	switch {
	case high <= cephMaxNumber || high == cephNoNumber:
		return low, nil
	case high >= cephNoMore:
		return low ^ high, nil
	}
	return 0, fmt.Errorf("%w: this kernel has no attribute ceph.cluster_fsid, and what statfs(2) says of the Ceph cluster (%08x %08x) can be meant in two ways: use Linux 5.11 or newer on this host", ErrContradiction, high, low)
}
