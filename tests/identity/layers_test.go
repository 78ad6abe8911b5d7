package identity_test

import (
	"fmt"
	"strings"
	"testing"
)

// realMapper: devices of the device mapper with a UUID, and without one.
func realMapper(t *testing.T, s *suite) {
	s.table(t, 1, "here", "site-a", 0, 2048)
	s.table(t, 2, "there", "site-a", 0, 2048)
	s.table(t, 2, "here", "site-b", 2048, 2048)
	s.prove(t, 1, 2, "/dev/mapper/here", "/dev/mapper/there", proof{typ: "dm", cache: "none"})
	s.table(t, 1, "plain", "", 0, 2048)
	s.table(t, 2, "plain2", "", 2048, 2048)
	release := s.hold(t, 1, "/dev/mapper/plain")
	s.wantHeld(t, 2, "/dev/mapper/plain2")
	release()
	s.capture(t, "dm-without-uuid", "Devices of the device mapper without a UUID over parts of one device.", one(1, "/dev/mapper/plain", 2, "/dev/mapper/plain2"))
}

// activate makes logical volumes usable on a node until the test ends.
func (s *suite) activate(t *testing.T, node int, names ...string) {
	t.Helper()
	all := vg + "/" + strings.Join(names, " "+vg+"/")
	s.sh(t, node, "lvm lvchange -q -ay "+all)
	s.undo(t, node, "lvm lvchange -q -an "+all)
}

// realCrypt: encrypted volumes on shared disks, which each host calls otherwise.
func realCrypt(t *testing.T, s *suite) {
	s.activate(t, 1, "luks1", "luks2")
	s.activate(t, 2, "luks1", "luks2")
	const key = "modprobe dm-crypt; echo -n secret | DM_DISABLE_UDEV=1 cryptsetup "
	for _, volume := range []string{"luks1", "luks2"} {
		s.sh(t, 1, key+"luksFormat -q --type luks2 --cipher aes-xts-plain64 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --luks2-metadata-size 16k --luks2-keyslots-size 256k --key-file - /dev/vms/"+volume)
	}
	open := func(node int, volume, name string) {
		t.Helper()
		s.sh(t, node, key+"open --type luks2 --key-file - /dev/vms/"+volume+" "+name)
		s.undo(t, node, "DM_DISABLE_UDEV=1 cryptsetup close "+name)
	}
	open(1, "luks1", "secret")
	open(2, "luks2", "secret")
	open(2, "luks1", "other")
	s.prove(t, 1, 2, "/dev/mapper/secret", "/dev/mapper/other", proof{typ: "crypt", cache: "none"})
}

// realMD: arrays of which one half is missing, on shared disks, with metadata of both
// kinds. A kernel that does not tell an array's UUID leaves it to udev, which has it of
// mdadm: that is to be the same one, as far as the product knows how mdadm writes it.
func realMD(t *testing.T, s *suite) {
	s.everywhere(t, "modprobe raid1", nil)
	s.activate(t, 1, "md1", "md2")
	s.activate(t, 2, "md1", "md2")
	versions := map[string]string{"md1": "1.2", "md2": "0.90"}
	for volume, metadata := range versions {
		s.sh(t, 1, "MDADM_NO_UDEV=1 mdadm --create /dev/"+volume+" --run --level=1 --raid-devices=2 --metadata="+metadata+" --homehost=any /dev/vms/"+volume+" missing </dev/null >&2; mdadm --stop /dev/"+volume)
	}
	assemble := func(node int, volume, array string) {
		t.Helper()
		uuid := s.sh(t, node, "MDADM_NO_UDEV=1 mdadm --assemble --run /dev/"+array+" /dev/vms/"+volume+" >&2; mdadm --detail --export /dev/"+array+" | sed -n s/^MD_UUID=//p")
		s.undo(t, node, "mdadm --stop /dev/"+array)
		want := "md:"
		for word := range strings.SplitSeq(strings.TrimSpace(uuid), ":") {
			if versions[volume] == "0.90" && len(word) == 8 {
				word = word[6:] + word[4:6] + word[2:4] + word[:2]
			}
			want += word
		}
		version := strings.TrimSpace(s.sh(t, node, "cat /sys/block/"+array+"/md/metadata_version"))
		if id := s.one(t, node, "/dev/"+array); id.Name != want || version != versions[volume] {
			t.Errorf("%s is %s, and to mdadm its UUID is %s; its metadata are %q", array, id.Name, uuid, version)
		}
	}
	assemble(1, "md1", "md10")
	assemble(2, "md1", "md11")
	assemble(2, "md2", "md10")
	s.prove(t, 1, 2, "/dev/md10", "/dev/md11", proof{typ: "md", cache: "none"})
}

// realDRBD: two resources, each with its disk on either node, and other minor numbers on
// the other one; one has a volume by number, and one has none. There is no udev in the nodes: its rules for DRBD make
// the links that drbdadm says, in one of two ways.
func realDRBD(t *testing.T, s *suite) {
	conf := "global { usage-count no; }\n"
	for port, name := range []string{"web", "db"} {
		conf += fmt.Sprintf("resource %s {\n", name)
		for node := 1; node <= 2; node++ {
			minor := 1 + (port+node+1)%2 // web is drbd1 on node 1 and drbd2 on node 2
			volume := fmt.Sprintf("device /dev/drbd%d; disk /dev/vms/drbd%d; meta-disk internal;", minor, 2*node-1+port)
			if name == "db" {
				volume = "volume 0 { " + volume + " }"
			}
			conf += fmt.Sprintf("on node%d { %s address 192.0.2.%d:%d; }\n", node, volume, node, 7788+port)
		}
		conf += "}\n"
	}
	for node := 1; node <= 2; node++ {
		if err := s.Node(node).WriteFile(s.ctx, "/etc/drbd.conf", []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		s.activate(t, node, fmt.Sprintf("drbd%d", 2*node-1), fmt.Sprintf("drbd%d", 2*node))
		s.undo(t, node, "drbdadm down all; rm -r /dev/drbd")
	}
	up := "modprobe drbd; for r in web db; do drbdadm create-md --force $r </dev/null >&2; drbdadm up $r >&2; done\n" +
		"for m in 1 2; do (eval $(drbdadm sh-udev minor-$m); for l in ${SYMLINK_BY_RES:-drbd/by-res/$RESOURCE} ${SYMLINK_BY_DISK:-drbd/by-disk/$DISK}; do mkdir -p /dev/${l%/*}; ln -sr /dev/drbd$m /dev/$l; done); done\n"
	s.together(t, map[int]string{1: up + "drbdadm primary --force web", 2: up + "drbdadm primary --force db"})
	s.prove(t, 1, 2, "/dev/drbd1", "/dev/drbd2", proof{typ: "drbd", cache: "none"})
}

// samba is the configuration of a server of two shares for everybody.
const samba = `[global]
	map to guest = Bad User
	guest account = root
	disable netbios = yes
	load printers = no
	smb ports = 445
	log file = /tmp/smb/log
	private dir = /tmp/smb
	state directory = /tmp/smb
	cache directory = /tmp/smb
	lock directory = /tmp/smb
	pid directory = /tmp/smb
	ncalrpc dir = /tmp/smb/rpc
[vms]
	path = /srv/smb/vms
	guest ok = yes
	read only = no
	force user = root
[other]
	path = /srv/smb/other
	guest ok = yes
	read only = no
	force user = root
`

// realCIFS: a share by two names of its server, in other letters, and another share.
func realCIFS(t *testing.T, s *suite) {
	if err := s.Node(3).WriteFile(s.ctx, "/tmp/smb.conf", []byte(samba), 0o644); err != nil {
		t.Fatal(err)
	}
	s.sh(t, 3, "mkdir -p /tmp/smb /srv/smb/vms /srv/smb/other; for d in vms other; do cp /tmp/boot /srv/smb/$d/Web.img; done; smbd -D -s /tmp/smb.conf")
	s.undo(t, 3, "kill $(cat /tmp/smb/smbd.pid)")
	mount := func(from, at, options string) string {
		return fmt.Sprintf("modprobe cifs; mkdir -p %s; mount -t cifs -o guest,vers=3.1.1%s %s %s", at, options, from, at)
	}
	s.together(t, map[int]string{
		1: mount("//192.0.2.3/vms", "/mnt/cifs", "") + ";" + mount("//192.0.2.3/vms", "/mnt/own", ",noserverino,nosharesock"),
		2: mount("//node3/VMS", "/srv/cifs", "") + "; mkdir -p /srv/smb3; mount -t smb3 -o guest,vers=3.1.1 //node3/Vms /srv/smb3;" + mount("//node3/other", "/mnt/cifs", "") + ";" + mount("//node3/VMS", "/srv/own", ",noserverino,nosharesock"),
	})
	s.undo(t, 1, "umount /mnt/cifs; umount /mnt/own")
	s.undo(t, 2, "umount /mnt/cifs; umount /srv/cifs; umount /srv/smb3; umount /srv/own")
	t.Run("OneDisk", func(t *testing.T) {
		s.prove(t, 1, 2, "/mnt/cifs/Web.img", "/srv/cifs/Web.img", proof{typ: "cifs"})
	})
	release := s.hold(t, 1, "/mnt/cifs/Web.img")
	s.wantHeld(t, 2, "/srv/smb3/Web.img")
	release()
	// Without the server's numbers for files.
	release = s.hold(t, 1, "/mnt/own/Web.img")
	s.wantHeld(t, 2, "/srv/own/Web.img")
	s.wantFree(t, 2, "/mnt/cifs/Web.img")
	release()
	s.capture(t, "cifs-options", "Shares that are mounted without the server's numbers for files, and under the other name of the file system.",
		one(1, "/mnt/cifs/Web.img", 2, "/srv/smb3/Web.img"),
		one(1, "/mnt/own/Web.img", 2, "/srv/own/Web.img"), two(1, "/mnt/own/Web.img", 2, "/mnt/cifs/Web.img"))
}
