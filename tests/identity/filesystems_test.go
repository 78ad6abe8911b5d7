package identity_test

import (
	"fmt"
	"testing"
)

// realGFS2: a file system at two places, and two at one place, whose files have
// equal numbers.
func realGFS2(t *testing.T, s *suite) {
	mkfs := func(n int) string {
		return fmt.Sprintf("lvm lvchange -q -ay vms/gfs%d; mkfs.gfs2 -q -O -K -p lock_dlm -t lab:gfs%d -j 2 -J 8 /dev/vms/gfs%d", n, n, n)
	}
	mount := func(n int, dir string) string {
		return fmt.Sprintf("mkdir -p %s; mount -t gfs2 -o noatime /dev/vms/gfs%d %s", dir, n, dir)
	}
	s.together(t, map[int]string{1: "modprobe gfs2; " + mkfs(1) + "; " + mount(1, "/mnt/gfs"), 2: "modprobe gfs2; " + mkfs(2) + "; " + mount(2, "/mnt/gfs")})
	s.undo(t, 1, "umount /mnt/gfs; lvm lvchange -q -an vms/gfs1")
	s.sh(t, 2, "lvm lvchange -q -ay vms/gfs1; "+mount(1, "/srv/gfs"))
	s.undo(t, 2, "umount /mnt/gfs; umount /srv/gfs; lvm lvchange -q -an vms/gfs1 vms/gfs2")
	s.files(t, 1, 2, "/mnt/gfs/web.img", "/srv/gfs/web.img")
	s.prove(t, 1, 2, "/mnt/gfs/web.img", "/srv/gfs/web.img", proof{typ: "gfs2"})
}

// files makes path on node a, sees it as other on node b, and makes path there, which
// is to have the same inode number.
func (s *suite) files(t *testing.T, a, b int, path, other string) {
	t.Helper()
	number := func(node int, path string) string { return s.sh(t, node, "stat -c %i "+path) }
	s.sh(t, a, "cp /tmp/boot "+path+"; sync "+path)
	s.sh(t, b, "cp /tmp/boot "+path+"; sync "+path)
	if x, y, z := number(a, path), number(b, other), number(b, path); x != y || x != z {
		t.Errorf("%s has the inode number %q, %s %q, and %s on the other node %q: they should be equal, so that numbers alone cannot tell them apart", path, x, other, y, path, z)
	}
}

// ocfs2Cluster is cluster.conf(5) of O2CB, OCFS2's own cluster, for two nodes.
const ocfs2Cluster = `cluster:
	name = ocfs
	heartbeat_mode = local
	node_count = 2

node:
	cluster = ocfs
	number = 1
	ip_port = 7777
	ip_address = 192.0.2.1
	name = node1

node:
	cluster = ocfs
	number = 2
	ip_port = 7777
	ip_address = 192.0.2.2
	name = node2
`

func realOCFS2(t *testing.T, s *suite) {
	for node := 1; node <= 2; node++ {
		if err := s.Node(node).WriteFile(s.ctx, "/etc/ocfs2/cluster.conf", []byte(ocfs2Cluster), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	join := func(n int) string {
		return fmt.Sprintf("modprobe ocfs2; modprobe ocfs2_stack_o2cb; echo o2cb > /sys/fs/ocfs2/cluster_stack; o2cb register-cluster ocfs; lvm lvchange -q -ay vms/ocfs%d; "+
			"mkfs.ocfs2 -q -N 2 --cluster-stack=o2cb --cluster-name=ocfs -J size=4M /dev/vms/ocfs%d </dev/null", n, n)
	}
	// A mount waits until the heartbeat of its node on the disk is known to be steady.
	mount := func(n int, dir string) string {
		return fmt.Sprintf("mkdir -p %s; mount -t ocfs2 /dev/vms/ocfs%d %s", dir, n, dir)
	}
	s.together(t, map[int]string{1: join(1), 2: join(2)})
	s.undo(t, 1, "umount /mnt/ocfs; lvm lvchange -q -an vms/ocfs1")
	s.undo(t, 2, "umount /mnt/ocfs; umount /srv/ocfs; lvm lvchange -q -an vms/ocfs1 vms/ocfs2")
	s.together(t, map[int]string{1: mount(1, "/mnt/ocfs"), 2: mount(2, "/mnt/ocfs")})
	s.sh(t, 2, "lvm lvchange -q -ay vms/ocfs1; "+mount(1, "/srv/ocfs"))
	s.files(t, 1, 2, "/mnt/ocfs/web.img", "/srv/ocfs/web.img")
	s.prove(t, 1, 2, "/mnt/ocfs/web.img", "/srv/ocfs/web.img", proof{typ: "ocfs2"})
}
