package identity_test

import (
	"fmt"
	"testing"
)

// brick is the configuration of a server of one folder, and volume of a client of it. They are
// what glusterd would make of a volume with one brick.
const (
	brick = `volume posix
	type storage/posix
	option directory /srv/gluster/%[1]s
end-volume
volume locks
	type features/locks
	subvolumes posix
end-volume
volume %[1]s
	type protocol/server
	option transport-type tcp
	option transport.socket.listen-port %[2]d
	option auth.addr.locks.allow *
	subvolumes locks
end-volume
`
	volume = `volume %[1]s
	type protocol/client
	option transport-type tcp
	option remote-host node3
	option remote-port %[2]d
	option remote-subvolume locks
end-volume
`
)

// realGluster: a volume of GlusterFS at two places, and another one.
func realGluster(t *testing.T, s *suite) {
	s.everywhere(t, "modprobe fuse; mkdir -p /run/gluster /var/log/glusterfs", nil)
	for i, name := range []string{"vms", "other"} {
		for node := 1; node <= 3; node++ {
			text := volume
			if node == 3 {
				text = brick
			}
			if err := s.Node(node).WriteFile(s.ctx, "/tmp/"+name+".vol", fmt.Appendf(nil, text, name, 24010+i), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		// On ext4, as an overlay and tmpfs have not all the attributes that it needs.
		s.sh(t, 3, fmt.Sprintf("mkdir -p /srv/gluster/%[1]s; truncate -s 16M /tmp/%[1]s.ext4; mkfs.ext4 -q /tmp/%[1]s.ext4; mount -o loop /tmp/%[1]s.ext4 /srv/gluster/%[1]s; "+
			"glusterfsd -f /tmp/%[1]s.vol -p /run/%[1]s.pid -l /tmp/%[1]s.log || { cat /tmp/%[1]s.log; exit 1; }", name))
		s.undo(t, 3, "kill $(cat /run/"+name+".pid); umount -l /srv/gluster/"+name)
	}
	mount := func(node int, name, at string) {
		t.Helper()
		s.sh(t, node, fmt.Sprintf("mkdir -p %[2]s; glusterfs -f /tmp/%[1]s.vol -l /tmp/%[1]s.log %[2]s; cp /tmp/boot %[2]s/web.img", name, at))
		s.undo(t, node, "umount "+at)
	}
	mount(1, "vms", "/mnt/gluster")
	mount(2, "vms", "/opt/gluster")
	mount(2, "other", "/mnt/gluster")
	s.prove(t, 1, 2, "/mnt/gluster/web.img", "/opt/gluster/web.img", proof{typ: "fuse.glusterfs"})
}
