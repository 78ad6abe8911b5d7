package doctor

import (
	"io/fs"

	"github.com/vmlockd/vmlockd/internal/domstatus"
)

const (
	webXML  = "/run/libvirt/qemu/web.xml"
	dbXML   = "/run/libvirt/qemu/db.xml"
	defXML  = "/etc/libvirt/qemu/web.xml"
	qemu    = "/etc/libvirt/qemu.conf"
	lockd   = "/etc/libvirt/qemu-lockd.conf"
	wwnDisk = "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4"
)

var libvirtFaults = []fault{
	{"no qemu.conf", true, func(w *world) { w.remove(qemu) }, []string{idLockManager}, qemu, "not set", `lock_manager = "lockd"`},
	{"lock_manager is not set", true, func(w *world) { w.replace(qemu, `lock_manager = "lockd"`, `# lock_manager = "lockd"`) }, []string{idLockManager}, qemu, "not set", ""},
	{"lock_manager is nop", true, func(w *world) { w.replace(qemu, `"lockd"`, `"nop"`) }, []string{idLockManager}, qemu + ":5", "not set", ""},
	{"lock_manager is sanlock", true, func(w *world) { w.replace(qemu, `lock_manager = "lockd"`, `lock_manager = "sanlock"`) }, []string{idLockManagerOff}, qemu + ":5", `"sanlock"`, `lock_manager = "lockd"`},
	{"qemu.conf cannot be understood", true, func(w *world) { w.replace(qemu, `"lockd"`, `lockd`) }, []string{idUnchecked}, qemu, "line 5", ""},
	{"qemu.conf cannot be read", true, func(w *world) { w.at(qemu).err = fs.ErrPermission }, []string{idUnchecked}, qemu, "permission", "as root"},
	{"libvirtd was not restarted", true, func(w *world) { w.replace("/proc/756/maps", "lock-driver/lockd.so", "storage-backend/x.so") }, []string{idLibvirtStale}, "libvirtd (process 756)", "asks for no lock", "systemctl restart libvirtd"},
	{"libvirtd's memory cannot be seen", true, func(w *world) { w.at("/proc/756/maps").err = fs.ErrPermission }, []string{idUnchecked}, "756", "lock manager", ""},
	{"auto_disk_leases is off", true, func(w *world) { w.replace(lockd, "\nauto_disk_leases = 1", "\nauto_disk_leases = 0") }, []string{idAutoLeases}, lockd + ":3", "none of a disk", "auto_disk_leases = 1"},
	{"no lock at all", true, func(w *world) {
		w.replace(lockd, "\nauto_disk_leases = 1", "\nauto_disk_leases = 0\nrequire_lease_for_disks = 0")
	}, []string{idAutoLeases, idRequireLease}, lockd + ":4", "no lock at all", ""},
	{"lockspaces here and not there", false, func(w *world) {
		w.replace(lockd, "#file_lockspace_dir", "file_lockspace_dir")
	}, []string{idLockspaceDir}, lockd, "host2", "file_lockspace_dir"},
	{"lockspaces there and not here", false, func(w *world) {
		for range 2 { // told once for each host
			w.daemon.Holders = append(w.daemon.Holders, Holder{Node: "host2", VM: "mail", Lockspace: "/var/lib/libvirt/lockd/files", Resource: domstatus.Hashed("/x")})
		}
	}, []string{idLockspaceDir}, lockd, `"/var/lib/libvirt/lockd/files"`, ""},

	{"a disk is not locked", false, func(w *world) { w.daemon.Holders = w.daemon.Holders[1:] }, []string{idUnlocked}, "web, disk vda", web, "virsh suspend web"},
	{"no disk is locked", true, func(w *world) { w.daemon.Holders = nil }, []string{idUnlocked, idUnlocked, idUnlocked, idUnlocked}, "db, disk vdb", "", ""},
	{"another process holds the lock", true, func(w *world) { w.daemon.Holders[0].PID = 999 }, []string{idUnlocked}, "web, disk vda", "process 812", ""},
	{"another host holds the lock", false, func(w *world) { w.daemon.Holders[0].Here = false }, []string{idUnlocked}, "web, disk vda", "", ""},
	{"shared without <shareable/>", true, func(w *world) {
		w.replace(webXML, "<shareable/>", "")
		w.replace(dbXML, "<shareable/>", "")
		w.replace(defXML, "<shareable/>", "")
	}, []string{idLockMode, idLockMode, idDiskTwice}, "web, disk vdb", "locked shared", ""},
	{"<shareable/> and locked exclusively", true, func(w *world) { w.daemon.Holders[1].Shared = false }, []string{idLockMode}, "web, disk vdb", "locked exclusively", ""},
	{"two write a disk", true, func(w *world) {
		w.replace(dbXML, "/dev/vg0/db", web)
		w.daemon.Holders[2].Resource = web
	}, []string{idDiskTwice}, web, "db, web", ""},
	{"the image below a disk is written", true, func(w *world) {
		below(w, "/srv/vm/base.img", "/dev/vg0/bottom")
		w.daemon.Holders = append(w.daemon.Holders, Holder{Here: true, Node: "host1", VM: "mail", PID: 999, Resource: "/srv/vm/base.img"})
	}, []string{idBelow}, "web, disk vda", "/srv/vm/base.img", "end one of the two"},
	{"shareable qcow2", true, func(w *world) {
		w.replace(defXML, "type='qcow2' cache='none'/>\n        <source file='/srv/vm/web.img' index='1'/>", "type='qcow2' cache='none'/>\n        <shareable/><source file='/srv/vm/other.img'/>")
	}, []string{idShareFormat}, "web, disk vda", "/srv/vm/other.img is qcow2", "convert -O raw"},
	{"shareable with a cache", true, func(w *world) {
		w.replace(webXML, "type='raw' cache='none'", "type='raw' cache='writeback'")
	}, []string{idShareCache}, "web, disk vdb", "writeback", "cache='none'"},
	{"shareable for some", true, func(w *world) {
		w.write("/etc/libvirt/qemu/third.xml", "<domain><name>third</name><devices><disk type='file' device='disk'><source file='"+shared+"'/><target dev='vda'/></disk></devices></domain>")
	}, []string{idSharePartial}, "/etc/libvirt/qemu/third.xml", "not in third", "<shareable/>"},
	{"an unstable name", false, func(w *world) {
		w.replace(dbXML, wwnDisk, "/dev/sdb1")
		w.daemon.Holders[2].Resource = "/dev/sdb1"
	}, []string{idUnstable}, "db, disk vda", "/dev/sdb1", "/dev/disk/by-id"},
	{"an unstable name in a definition", false, func(w *world) {
		w.write("/etc/libvirt/qemu/third.xml", "<domain><name>third</name><devices><disk type='block' device='lun'><source dev='/dev/nvme0n1p2'/><target dev='sda'/></disk></devices></domain>")
	}, []string{idUnstable}, "third, disk sda", "/dev/nvme0n1p2", ""},
	{"a file system that nobody knows", false, func(w *world) {
		w.disks = map[string]Identity{web: {Type: "virtiofs", ByPath: true, Doubt: true}}
	}, []string{idByPath}, "web, disk vda", "virtiofs", "[[identity.rule]]"},
	{"a disk that hosts may name otherwise", false, func(w *world) {
		w.disks = map[string]Identity{web: {Type: "cifs", Name: "cifs:vm:/web.img", ByPath: true, Doubt: true}}
	}, []string{idByPath}, "web, disk vda", "cifs:vm:/web.img", "serverino"},
	{"a disk that cannot be told", false, func(w *world) {
		w.disks = map[string]Identity{web: {Error: "its server does not answer"}}
	}, []string{idNoIdentity}, "web, disk vda", "its server does not answer", "vmlockctl identify"},
	{"state that is no XML", true, func(w *world) { w.write(webXML, "<domstatus") }, []string{idUnchecked}, webXML, "disks of a virtual machine", ""},
	{"state of something else", true, func(w *world) { w.write(webXML, "<network><name>x</name></network>") }, []string{idUnchecked}, webXML, "", ""},
	{"a volume that cannot be found", true, func(w *world) {
		w.replace(webXML, "<disk type='file' device='disk'>", "<disk type='volume' device='disk'>")
		w.replace(webXML, "<source file='"+web+"' index='1'/>", "<source pool='vms' volume='web.img'/>")
	}, []string{idUnchecked}, webXML, "vms/web.img", ""},
	{"virtual machines cannot be seen", true, func(w *world) {
		noVMs(w)
		w.write(runningDir, "")
		w.at(runningDir).err = fs.ErrPermission
	}, []string{idUnchecked}, runningDir, "", "as root"},
}
