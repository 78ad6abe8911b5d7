package identity_test

import "testing"

// ceph makes node 3 a Ceph cluster in its memory, of which anybody may use anything: two
// images, one with a snapshot, and a file system with two directories. ceph-osd gives up if
// it asks for its place before it has heard which cluster that is, as can be on a slow machine.
const ceph = `d=/tmp/ceph fsid=$(cat /proc/sys/kernel/random/uuid) osd=$(cat /proc/sys/kernel/random/uuid)
	mkdir -p /etc/ceph $d/mon $d/osd $d/mds
	cat > /etc/ceph/ceph.conf <<-END
		[global]
		fsid = $fsid
		mon host = v1:192.0.2.3:6789
		ms bind msgr2 = false
		auth cluster required = none
		auth service required = none
		auth client required = none
		mon data = $d/mon
		osd data = $d/osd
		mds data = $d/mds
		run dir = $d
		admin socket = $d/\$name.asok
		log file = $d/\$name.log
		pid file = $d/\$name.pid
		osd objectstore = memstore
		memstore device bytes = 67108864
		osd op num shards = 1
		osd op num threads per shard = 1
		osd pool default size = 1
		osd pool default min size = 1
		mon allow pool size one = true
		mon data avail crit = 1
		rbd default features = 1
	END
	ceph-mon -i a --mkfs --fsid $fsid; ceph-mon -i a
	ceph osd new $osd; ceph-osd -i 0 --mkfs --osd-uuid $osd
	for i in $(seq 20); do ceph-osd -i 0 && break; done; kill -0 $(cat $d/osd.0.pid)
	for pool in vms meta data; do ceph osd pool create $pool 1; done
	ceph fs new lab meta data; ceph-mds -i a
	rbd create --size 4 vms/web; rbd create --size 4 vms/db; rbd snap create vms/web@snap
	for i in $(seq 300); do ceph mds stat | grep up:active && break; sleep 0.2; done
	modprobe ceph; mkdir -p /mnt/ceph; mount -i -t ceph -o name=admin 192.0.2.3:6789:/ /mnt/ceph
	for dir in own other; do mkdir /mnt/ceph/$dir; cp /tmp/boot /mnt/ceph/$dir/web.img; done; umount /mnt/ceph`

// realCeph: images of RADOS, and a file of CephFS by two directories of it that are mounted.
func realCeph(t *testing.T, s *suite) {
	s.undo(t, 3, "cd /tmp/ceph; kill $(cat *.pid); rm -r /etc/ceph")
	s.sh(t, 3, "("+ceph+") >&2")
	add := func(image string) string {
		return "; echo 192.0.2.3:6789 name=admin vms " + image + " > /sys/bus/rbd/add_single_major"
	}
	t.Run("RBD", func(t *testing.T) {
		s.undo(t, 1, "echo 0 > /sys/bus/rbd/remove_single_major")
		s.undo(t, 2, "for n in 0 1 2; do echo $n > /sys/bus/rbd/remove_single_major; done")
		s.together(t, map[int]string{1: "modprobe rbd" + add("web"), 2: "modprobe rbd" + add("db") + add("web") + add("web snap")})
		s.prove(t, 1, 2, "/dev/rbd0", "/dev/rbd1", proof{typ: "rbd", cache: "none"})
		release := s.hold(t, 1, "/dev/rbd0")
		s.wantFree(t, 2, "/dev/rbd2") // the snapshot is another disk
		release()
		s.capture(t, "rbd-snapshot", "An image and its snapshot.", one(1, "/dev/rbd0", 2, "/dev/rbd1"), two(1, "/dev/rbd0", 2, "/dev/rbd2"))
	})
	t.Run("CephFS", func(t *testing.T) {
		mount := func(from, at string) string {
			return "; mkdir -p " + at + "; mount -i -t ceph -o name=admin " + from + " " + at
		}
		s.together(t, map[int]string{
			1: "modprobe ceph" + mount("192.0.2.3:6789:/own", "/mnt/ceph"),
			2: "modprobe ceph" + mount("192.0.2.3:6789:/", "/srv/ceph") + mount("192.0.2.3:6789:/other", "/mnt/ceph"),
		})
		s.undo(t, 1, "umount /mnt/ceph")
		s.undo(t, 2, "umount /mnt/ceph; umount /srv/ceph")
		s.prove(t, 1, 2, "/mnt/ceph/web.img", "/srv/ceph/own/web.img", proof{typ: "ceph"})
	})
}
