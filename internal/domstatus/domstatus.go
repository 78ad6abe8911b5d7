// Package domstatus reads what libvirt writes about virtual machines: their
// definitions, and of those that run a file in /run/libvirt/qemu, which it replaces
// by another whenever something changes (qemuDomainObjSaveStatus in
// src/qemu/qemu_domain.c of libvirt). It knows for which disks libvirt asks a lock,
// and by which name.
package domstatus

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"strings"
)

// Running is the Status.State of a virtual machine whose processors run. In any other
// libvirt has given back its locks, or has not taken them yet.
const Running = "running"

// Status is the run-time state of a virtual machine (virDomainObjFormat in
// src/conf/domain_conf.c).
type Status struct {
	XMLName xml.Name `xml:"domstatus"`
	State   string   `xml:"state,attr"`
	PID     int      `xml:"pid,attr"` // of QEMU
	// Job is what is done with it, such as a migration: "" or "none" if nothing is that
	// lasts. libvirt notes these and the end of a virtual machine, and not, for example, that a disk is being
	// unplugged (qemuDomainTrackJob).
	Job struct {
		Type  string `xml:"type,attr"`
		Async string `xml:"async,attr"`
	} `xml:"job"`
	Domain Domain `xml:"domain"`
}

// Idle says whether no job is noted.
func (s Status) Idle() bool { return none(s.Job.Type) && none(s.Job.Async) }

func none(job string) bool { return job == "" || job == "none" }

// ParseStatus reads a Status.
func ParseStatus(text []byte) (Status, error) {
	var s Status
	err := xml.Unmarshal(text, &s)
	return s, err
}

// Domain is a virtual machine as it is defined (docs/formatdomain).
type Domain struct {
	Name   string  `xml:"name"`
	UUID   string  `xml:"uuid"`
	Disks  []Disk  `xml:"devices>disk"`
	Leases []Lease `xml:"devices>lease"`
}

// Disk is a disk of any kind, or a drive.
type Disk struct {
	Type   string `xml:"type,attr"`
	Driver struct {
		Type  string `xml:"type,attr"`
		Cache string `xml:"cache,attr"`
	} `xml:"driver"`
	Source struct {
		File   string `xml:"file,attr"`
		Dev    string `xml:"dev,attr"`
		Dir    string `xml:"dir,attr"`
		Pool   string `xml:"pool,attr"`
		Volume string `xml:"volume,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	Device    string    `xml:"device,attr"`
	ReadOnly  *struct{} `xml:"readonly"`
	Shareable *struct{} `xml:"shareable"`
	Below     *Below    `xml:"backingStore"`
}

// Below is an image on which a disk, or another image, lies as an overlay.
type Below struct {
	Source struct {
		File string `xml:"file,attr"`
		Dev  string `xml:"dev,attr"`
	} `xml:"source"`
	Below *Below `xml:"backingStore"`
}

// Lease is a <lease>, a lock for no disk.
type Lease struct {
	Lockspace string `xml:"lockspace"`
	Key       string `xml:"key"`
	Target    struct {
		Path string `xml:"path,attr"`
	} `xml:"target"`
}

// Written says whether the guest may write the disk. A CD drive is read-only
// whatever it says (virDomainDiskDefPostParse).
func (d Disk) Written() bool { return d.ReadOnly == nil && d.Device != "cdrom" }

// Place is where the disk is on this host, or for a volume of a pool "pool/name". Both are
// empty for a drive without a disk, and for a disk that is not on this host's
// storage: libvirt asks for no lock for that (virDomainLockManagerAddImage in
// src/locking/domain_lock.c).
func (d Disk) Place() (path, volume string) {
	switch d.Type {
	case "file":
		return d.Source.File, ""
	case "block":
		return d.Source.Dev, ""
	case "dir":
		return d.Source.Dir, ""
	case "volume":
		if d.Source.Pool != "" {
			return "", d.Source.Pool + "/" + d.Source.Volume
		}
	}
	return "", ""
}

// Hashed is the name that libvirt gives the lock of a disk in file_lockspace_dir.
func Hashed(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:])
}

// Uses says whether the virtual machine writes a disk, or has a lease, whose lock has this
// name. unsure is true if it does not seem so and cannot be told: the path of a
// volume is not in a Domain, and libvirt may name the lock of a block device by an id
// of LVM or SCSI.
func (d Domain) Uses(lockspace, name string) (uses, unsure bool) {
	for _, l := range d.Leases {
		space := l.Target.Path
		if l.Lockspace != "" {
			space += "/" + l.Lockspace
		}
		if l.Key == name && space == lockspace {
			return true, false
		}
	}
	for _, k := range d.Disks {
		if !k.Written() {
			continue
		}
		path, volume := k.Place()
		switch {
		case path != "" && (lockspace == "" && path == name || lockspace != "" && Hashed(path) == name):
			return true, false
		case volume != "", lockspace != "" && strings.HasPrefix(path, "/dev"):
			unsure = true
		}
	}
	return false, unsure
}
