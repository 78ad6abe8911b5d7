package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// serve makes node 1 an NFS server, with the kernel's own server and without its
// programs: what those would answer to the kernel's questions is written in advance
// (fs/nfsd/export.c, net/sunrpc/svcauth_unix.c). The file system is a tmpfs with the
// fsid 0, which NFSv4 begins with; flags are insecure, no_subtree_check, fsid and async.
const serve = `
mkdir -p /export /proc/fs/nfsd
mount -t tmpfs none /export
echo image > /export/web.img; echo image > /export/db.img; ln /export/web.img /export/hard.img
mount -t nfsd nfsd /proc/fs/nfsd
echo '-2 -3 +4 +4.1 +4.2' > /proc/fs/nfsd/versions
echo 'tcp 2049' > /proc/fs/nfsd/portlist
echo 2 > /proc/fs/nfsd/threads
for a in %s; do echo "nfsd $a 2147483647 lab" > /proc/net/rpc/auth.unix.ip/channel; done
echo 'lab /export 2147483647 9234 65534 65534 0' > /proc/net/rpc/nfsd.export/channel
echo 'lab 1 \x00000000 2147483647 /export' > /proc/net/rpc/nfsd.fh/channel
`

// nfs has one export mounted twice, by two addresses of its server and at two
// places.
func nfs(t *testing.T, s *suite) {
	second := strings.Replace(s.Node(1).Addr(), "192.0.2.", "198.51.100.", 1)
	var clients []string
	for _, n := range s.Nodes() {
		clients = append(clients, n.Addr(), strings.Replace(n.Addr(), "192.0.2.", "198.51.100.", 1))
	}
	s.sh(t, 1, fmt.Sprintf(serve, strings.Join(clients, " ")))
	mount := func(node int, address, at string) {
		s.sh(t, node, fmt.Sprintf("mkdir -p %[1]s; mount -i -t nfs4 -o addr=%[2]s,clientaddr=%[3]s,vers=4.1,sec=sys %[2]s:/ %[1]s", at, address, s.Node(node).Addr()))
		t.Cleanup(func() { s.sh(t, node, "umount "+at) })
	}
	mount(1, s.Node(1).Addr(), "/mnt/nfs")
	mount(2, second, "/srv/elsewhere")
	for _, at := range []string{s.sh(t, 1, "ls /mnt/nfs"), s.sh(t, 2, "ls /srv/elsewhere")} {
		if strings.Join(strings.Fields(at), " ") != "db.img hard.img web.img" {
			t.Fatalf("the mount has %q", at)
		}
	}
	here, there := s.one(t, 1, "/mnt/nfs/web.img"), s.one(t, 2, "/srv/elsewhere/web.img")
	t.Logf("%s\n%s", strings.Join(here.Steps, "\n"), strings.Join(there.Steps, "\n"))
	if here.Name != there.Name || here.Scope != "cluster" || here.Doubt || !strings.HasPrefix(here.Name, "nfs:") {
		t.Errorf("one file is %+v and %+v", here, there)
	}
	s.hold(t, 1, "/mnt/nfs/web.img")
	s.wantHeld(t, 2, "/srv/elsewhere/web.img")
	s.wantHeld(t, 2, "/srv/elsewhere/hard.img")
	s.wantFree(t, 2, "/srv/elsewhere/db.img")
	s.hold(t, 2, "/srv/elsewhere/db.img")
	s.wantHeld(t, 1, "/mnt/nfs/db.img")
}

// TestNFS has a cluster of its own: a node whose NFS server hangs is of no use for
// other tests.
func TestNFS(t *testing.T) {
	s := boot(t, lab.Config{Nodes: 2, Modules: []string{"nfsd", "nfsv4"}})
	nfs(t, s)
	t.Run("Hanging", func(t *testing.T) { hanging(t, s) })
}

// hanging: while the server does not answer, nothing on it is granted, and what is
// on other file systems is, at once.
func hanging(t *testing.T, s *suite) {
	s.sh(t, 2, "mkdir -p /srv/dead; mount -i -t nfs4 -o addr="+s.Node(1).Addr()+",clientaddr="+s.Node(2).Addr()+",vers=4.1,sec=sys,hard,noac "+s.Node(1).Addr()+":/ /srv/dead; ls /srv/dead")
	s.private(t, "/var/tmp/own.img")
	s.sh(t, 1, "echo 0 > /proc/fs/nfsd/threads")
	res, err := s.Node(2).Exec(s.ctx, "vmlockctl", "run", "/srv/dead/web.img", "--", "true")
	if err != nil || res.OK() {
		t.Fatalf("a disk of a server that does not answer: %v, %v", res, err)
	}
	t.Logf("%v: %s", res.Took, strings.TrimSpace(res.Stderr))
	if id, _ := s.identify(t, 2, "/srv/dead/web.img"); id.Disks[0].Error == "" || id.Disks[0].Scope != "" {
		t.Errorf("it is told apart without its server: %+v", id)
	}
	s.wantFree(t, 2, "/var/tmp/own.img")
	s.sh(t, 1, "echo 2 > /proc/fs/nfsd/threads")
	s.sh(t, 2, "umount -l /srv/dead")
}
