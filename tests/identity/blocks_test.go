package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

const (
	vg      = "vms"
	gfsMB   = 48
	ocfsMB  = 40
	smallMB = 4
)

// volumeGroup makes logical volumes on the device that all nodes have.
func (s *suite) volumeGroup(t *testing.T) {
	t.Helper()
	script := "lvm pvcreate -q " + lab.Device + "; lvm vgcreate -q " + vg + " " + lab.Device
	sizes := map[string]int{"gfs1": gfsMB, "gfs2": gfsMB, "ocfs1": ocfsMB, "ocfs2": ocfsMB}
	for _, name := range strings.Fields("web db luks1 luks2 md1 md2 drbd1 drbd2 drbd3 drbd4") {
		sizes[name] = smallMB
	}
	for name, mb := range sizes {
		script += fmt.Sprintf("; lvm lvcreate -q -an -Wn -Zn -L%dM -n %s %s", mb, name, vg)
	}
	s.sh(t, 1, script)
}

// realLVM: a volume that was renamed while a host had it active has two names, and
// its old name is another volume's on the host that comes later.
func realLVM(t *testing.T, s *suite) {
	s.sh(t, 1, "lvm lvchange -q -ay vms/web")
	s.undo(t, 1, "DM_DISABLE_UDEV=1 dmsetup remove --retry vms-web")
	s.sh(t, 2, "lvm lvrename -q vms web moved; lvm lvrename -q vms db web; lvm lvchange -q -ay vms/web; lvm lvchange -q -ay vms/moved")
	s.bootable(t, 1, "/dev/vms/web")
	s.bootable(t, 2, "/dev/vms/web")
	s.numbersDiffer(t, "/dev/vms/web", "/dev/vms/moved")
	t.Run("OneDisk", func(t *testing.T) {
		s.prove(t, 1, 2, "/dev/vms/web", "/dev/vms/moved", proof{typ: "lvm", cache: "none", start: true})
	})

	// Made anew under its name while it is locked.
	release := s.hold(t, 2, "/dev/vms/moved")
	s.sh(t, 2, "lvm lvremove -q -y vms/moved; lvm lvcreate -q -Wn -Zn -L4M -n moved vms")
	s.sh(t, 3, "lvm lvchange -q -ay vms/moved")
	s.undo(t, 3, "lvm lvchange -q -an vms/moved")
	s.wantHeld(t, 1, "/dev/vms/web")   // node 1 has the volume as it was
	s.wantHeld(t, 2, "/dev/vms/moved") // the name stays with what it was locked for
	s.wantFree(t, 3, "/dev/vms/moved") // and the new volume is nobody's
	release()
	s.wantFree(t, 1, "/dev/vms/web")
	s.wantFree(t, 2, "/dev/vms/moved")
}

// lookElsewhere has a node find the units of a SCSI host in another order, so that
// they get each other's names. The host is the one of /dev/sda.
const lookElsewhere = `host=$(readlink -f /sys/block/sda/device | sed 's,.*/host\([0-9]*\)/.*,\1,')
	first=$(readlink -f /sys/block/sda/device | sed 's/.*://') second=$(readlink -f /sys/block/sdb/device | sed 's/.*://')
	echo 1 > /sys/block/sda/device/delete; echo 1 > /sys/block/sdb/device/delete
	for lun in $second $first; do
		echo "- - $lun" > /sys/class/scsi_host/host$host/scan
		for i in $(seq 100); do ls -d /sys/bus/scsi/devices/$host:*:$lun/block/sd? >/dev/null 2>&1 && break; sleep 0.1; done
	done
	ls /dev/sda /dev/sdb`

// realSCSI has units in the memory of each node, by the kernel's scsi_debug. They
// say the same of what they are on both nodes, as those of a SAN do.
func realSCSI(t *testing.T, s *suite) {
	for node := 1; node <= 2; node++ {
		s.sh(t, node, "modprobe sd_mod; modprobe scsi_debug dev_size_mb=8 max_luns=2 num_parts=1; for i in $(seq 100); do [ -b /dev/sdb1 ] && break; sleep 0.1; done; ls /dev/sda1 /dev/sdb1")
		s.undo(t, node, "rmmod scsi_debug")
	}
	s.sh(t, 2, lookElsewhere)
	t.Run("Partition", func(t *testing.T) {
		s.sh(t, 2, "for i in $(seq 100); do [ -b /dev/sda1 -a -b /dev/sdb1 ] && break; sleep 0.1; done; ls /dev/sda1 /dev/sdb1")
		s.hold(t, 1, "/dev/sda1")
		s.wantHeld(t, 2, "/dev/sdb1")
		s.wantFree(t, 2, "/dev/sda1")
		s.capture(t, "partition", "The first partitions of two SCSI units, which two hosts have found in another order.",
			one(1, "/dev/sda1", 2, "/dev/sdb1"), two(1, "/dev/sda1", 2, "/dev/sda1"))
	})
	t.Run("Multipath", func(t *testing.T) {
		table := func(name, uuid, disk string) string {
			return "modprobe dm-multipath; modprobe dm-round-robin; DM_DISABLE_UDEV=1 dmsetup create --uuid mpath-" + uuid + " " + name +
				" --table \"0 $(cat /sys/block/" + disk + "/size) multipath 0 0 1 1 round-robin 0 1 1 /dev/" + disk + " 1000\""
		}
		// The UUID is what multipathd makes of a WWID, or what its configuration says: it
		// does not count.
		s.sh(t, 1, table("mpatha", "one", "sda"))
		s.undo(t, 1, "DM_DISABLE_UDEV=1 dmsetup remove --retry mpatha")
		s.sh(t, 2, table("mpathb", "two", "sdb"))
		s.undo(t, 2, "DM_DISABLE_UDEV=1 dmsetup remove --retry mpathb")
		// The kernel's own name, as nobody may have made one below /dev/mapper.
		device := func(node int, name string) string {
			return strings.TrimSpace(s.sh(t, node, "for d in /sys/block/dm-*; do if [ \"$(cat $d/dm/name)\" = "+name+" ]; then echo /dev/${d##*/}; fi; done"))
		}
		a, b := device(1, "mpatha"), device(2, "mpathb")
		if id := s.one(t, 1, a); id.Type != "multipath" {
			t.Errorf("%+v", id)
		}
		s.hold(t, 1, a)
		s.wantHeld(t, 2, b)
		s.wantHeld(t, 2, "/dev/sdb")
		s.wantHeld(t, 1, "/dev/sda")
		s.wantFree(t, 2, "/dev/sda")
		s.capture(t, "multipath", "Maps of the device mapper with the target multipath, and SCSI units below them.",
			one(1, a, 2, b), one(1, a, 2, "/dev/sdb"), one(1, a, 1, "/dev/sda"), two(1, a, 2, "/dev/sda"))
	})
	t.Run("OneDisk", func(t *testing.T) {
		s.prove(t, 1, 2, "/dev/sda", "/dev/sdb", proof{typ: "scsi", cache: "none"})
	})
}

// target makes an iSCSI target of two units with the kernel's own, which has it all in
// configfs. Anybody may write to it.
const target = `modprobe target_core_file 2>/dev/null; modprobe iscsi_target_mod 2>/dev/null
	t=/sys/kernel/config/target tpg=$t/iscsi/iqn.2003-01.org.example:store/tpgt_1
	mkdir -p $t/iscsi; mkdir $t/iscsi/iqn.2003-01.org.example:store; mkdir $tpg
	for d in 1 2; do
		dd if=/dev/zero of=/tmp/unit$d bs=1M count=4 status=none
		mkdir -p $t/core/fileio_0/unit$d
		echo fd_dev_name=/tmp/unit$d,fd_dev_size=4194304 > $t/core/fileio_0/unit$d/control
		echo ${d}f0c4c4d-9a0a-3c8b-7c2f-000000000000 > $t/core/fileio_0/unit$d/wwn/vpd_unit_serial
		echo 1 > $t/core/fileio_0/unit$d/enable
		mkdir $tpg/lun/lun_$d; ln -s $t/core/fileio_0/unit$d $tpg/lun/lun_$d/unit
	done
	mkdir $tpg/np/192.0.2.3:3260
	echo 0 > $tpg/attrib/authentication; echo 1 > $tpg/attrib/generate_node_acls
	echo 1 > $tpg/attrib/cache_dynamic_acls; echo 0 > $tpg/attrib/demo_mode_write_protect
	echo 1 > $tpg/enable`

// realISCSI: node 3 has the disks, and nodes 1 and 2 reach them by the network.
func realISCSI(t *testing.T, s *suite) {
	s.sh(t, 3, target)
	login := func(node int) string {
		return fmt.Sprintf("modprobe sd_mod; modprobe iscsi_tcp; echo InitiatorName=iqn.2003-01.org.example:node%d > /etc/iscsi/initiatorname.iscsi; iscsid; "+
			"iscsiadm -m discovery -t st -p 192.0.2.3 && iscsiadm -m node -l; for i in $(seq 100); do [ -b /dev/sda -a -b /dev/sdb ] && break; sleep 0.1; done; ls /dev/sda /dev/sdb", node)
	}
	s.undo(t, 1, "iscsiadm -m node -u")
	s.undo(t, 2, "iscsiadm -m node -u")
	s.together(t, map[int]string{1: login(1), 2: login(2)})
	s.sh(t, 2, lookElsewhere)
	s.prove(t, 1, 2, "/dev/sda", "/dev/sdb", proof{typ: "iscsi", cache: "none"})
}

// realNBD: the client's command line tells the export, if it stays there; what is
// found in it is in doubt.
func realNBD(t *testing.T, s *suite) {
	conf := "[generic]\n"
	for _, name := range []string{"web", "db"} {
		conf += "[" + name + "]\nexportname=/tmp/nbd-" + name + "\n"
		s.sh(t, 3, "cp /tmp/boot /tmp/nbd-"+name)
	}
	if err := s.Node(3).WriteFile(s.ctx, "/tmp/nbd.conf", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sh(t, 3, "nbd-server -C /tmp/nbd.conf -p /run/nbd.pid")
	s.undo(t, 3, "kill $(cat /run/nbd.pid)")
	connect := func(node int, device, name, how string) {
		t.Helper()
		s.sh(t, node, "modprobe nbd; nbd-client "+how+" node3 /dev/"+device+" -N "+name+" >/dev/null 2>&1; for i in $(seq 100); do [ -e /sys/block/"+device+"/pid ] && break; sleep 0.1; done; cat /sys/block/"+device+"/pid")
		s.undo(t, node, "nbd-client -d /dev/"+device)
	}
	connect(1, "nbd0", "web", "-L")
	connect(2, "nbd0", "db", "-L")
	connect(2, "nbd1", "web", "-L")
	t.Run("OneDisk", func(t *testing.T) {
		s.prove(t, 1, 2, "/dev/nbd0", "/dev/nbd1", proof{typ: "nbd", doubt: true, cache: "none"})
		if s.libvirt {
			s.wantFinding(t, 1, "disk-by-path", true, "virtual machine "+plain+", disk sda", "/dev/nbd0", "in which hosts may differ")
		}
	})
	// By netlink, as is its default, it leaves nothing behind.
	connect(1, "nbd5", "web", "")
	if id := s.one(t, 1, "/dev/nbd5"); !id.Doubt || !id.ByPath || id.Name != "/dev/nbd5" {
		t.Errorf("a device of which nothing is known: %+v", id)
	}
}
