package identity

import (
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/lazyregexp"
)

// The kinds of devices, as rules name them.
const (
	TypeLVM       = "lvm"
	TypeMultipath = "multipath"
	TypeCrypt     = "crypt"
	TypeMapper    = "dm" // any other device of the device mapper
	TypeSCSI      = "scsi"
	TypeISCSI     = "iscsi"
	TypeNVMe      = "nvme"
	TypeDRBD      = "drbd"
	TypeRBD       = "rbd"
	TypeNBD       = "nbd"
	TypeMD        = "md"
	TypeLoop      = "loop"
	TypeBlock     = "block" // any other block device
)

// What else may be behind a path, and is in doubt.
const (
	TypeCharacter = "character" // a character device
	TypeUnknown   = "unknown"   // a file on a mount that is not in this process's mountinfo
)

// DeviceTypes lists them.
func DeviceTypes() []string {
	return []string{TypeLVM, TypeMultipath, TypeCrypt, TypeMapper, TypeSCSI, TypeISCSI, TypeNVMe, TypeDRBD, TypeRBD, TypeNBD, TypeMD, TypeLoop, TypeBlock}
}

// maxDepth bounds how deep devices and files lie upon one another.
const maxDepth = 16

// device names a block device.
func (l *lookup) device(id *Identity, n node) error {
	id.Local = "block device " + n.rdev.String()
	d, err := l.block(n.rdev, 0)
	id.Steps = append(id.Steps, d.Steps...)
	if d.Path != "" {
		id.Path = d.Path
	}
	if err != nil {
		id.Type = d.Type // for rules
		return err
	}
	id.Type, id.Scope, id.Name, id.ByPath, id.Doubt = d.Type, d.Scope, d.Name, d.ByPath, d.Doubt
	if d.Local != "" {
		id.Local = d.Local // of what a loop device shows
	}
	if id.Name == "" {
		id.byPath("nothing is known that tells this device from others")
	}
	return nil
}

// block names the device with a number by what sysfs says of it.
func (l *lookup) block(dev number, depth int) (Identity, error) {
	id := Identity{Type: TypeBlock}
	dir, err := l.real("/sys/dev/block", dev.String())
	if err != nil {
		id.step("block device %s is not in sysfs", dev)
		return id, nil
	}
	return l.blockAt(dir, depth)
}

// blockAt is block for a directory below /sys/devices.
func (l *lookup) blockAt(dir string, depth int) (id Identity, err error) {
	id.Type = TypeBlock
	if depth > maxDepth {
		return id, fmt.Errorf("%w: more than %d devices lie upon one another", ErrContradiction, maxDepth)
	}
	kernelName := strings.ReplaceAll(path.Base(dir), "!", "/")
	id.Path = "/dev/" + kernelName
	if part := l.read(dir, "partition"); part != "" {
		return l.partition(id, dir, part, depth)
	}
	switch {
	case l.exists(dir, "dm"):
		err = l.mapper(&id, dir, depth)
	case l.exists(dir, "loop"):
		err = l.loop(&id, dir, depth)
	case l.exists(dir, "md"):
		l.md(&id, dir)
	case strings.HasPrefix(kernelName, "drbd"):
		l.drbd(&id, kernelName)
	case strings.HasPrefix(kernelName, "rbd"):
		l.rbd(&id, kernelName)
	case strings.HasPrefix(kernelName, "nbd"):
		l.nbd(&id, dir)
	case strings.HasPrefix(kernelName, "nvme"):
		id.Type = TypeNVMe
		if wwid := usable(l.read(dir, "wwid")); wwid != "" {
			id.Name = "nvme:" + wwid
			id.step("%s is the NVMe namespace %s", id.Path, wwid)
		}
	default:
		l.scsi(&id, dir)
	}
	if err == nil && id.Name == "" {
		id.step("%s: the kernel tells nothing that would be the same on another host", id.Path)
		id.Name, id.ByPath, id.Doubt = id.Path, true, true
	}
	return id, err
}

// partition is a part of what its disk is.
func (l *lookup) partition(id Identity, dir, part string, depth int) (Identity, error) {
	disk, err := l.blockAt(path.Dir(dir), depth+1)
	if err != nil {
		disk.Path = id.Path
		return disk, err
	}
	disk.step("%s is partition %s of it", id.Path, part)
	if strings.HasPrefix(disk.Name, "/") {
		disk.Name = id.Path
	} else {
		disk.Name += "-part" + part
	}
	if disk.Local != "" {
		disk.Local += " partition " + part
	}
	disk.Path = id.Path
	return disk, nil
}

// usable is a number by which a device says what it is, unless it says so of every
// device of its make.
func usable(wwid string) string {
	wwid = strings.Join(strings.Fields(wwid), " ")
	_, value, ok := strings.Cut(wwid, ".")
	if !ok || strings.Trim(value, "0- ") == "" {
		return ""
	}
	return wwid
}

// scsi takes the designator that the kernel prefers (scsi_vpd_lun_id in
// drivers/scsi/scsi_lib.c), so that two hosts prefer the same.
func (l *lookup) scsi(id *Identity, dir string) {
	if !l.exists(dir, "device/vpd_pg83") && !l.exists(dir, "device/wwid") && !l.exists(dir, "device/scsi_level") {
		return
	}
	id.Type = TypeSCSI
	real, err := l.real(dir, "device")
	session := ""
	if err == nil {
		session = iscsiSession().FindString(real)
	}
	if session != "" {
		id.Type = TypeISCSI
	}
	wwid := usable(l.read(dir, "device/wwid"))
	if wwid == "" {
		wwid = usable(pickDesignator(l.readBytes(dir, "device/vpd_pg83")))
	}
	if wwid != "" {
		id.Name = "scsi:" + wwid
		id.step("%s is the SCSI unit %s", id.Path, wwid)
		return
	}
	if session == "" {
		return
	}
	name := path.Base(session)
	target := l.read(session, "iscsi_session", name, "targetname")
	address := strings.Split(path.Base(real), ":")
	if target != "" && len(address) == 4 {
		id.Name = fmt.Sprintf("iscsi:%s/%s", strings.ToLower(target), address[3])
		id.step("%s is unit %s of the iSCSI target %s", id.Path, address[3], target)
	}
}

// iscsiSession is the part of a device's path up to its iSCSI session.
var iscsiSession = lazyregexp.New(`^.*/session\d+`)

// md takes the array's UUID from the kernel, or from the link that udev makes. With
// metadata of the version 0.90 mdadm, which udev asks, writes the bytes of each of its
// four words the other way round.
func (l *lookup) md(id *Identity, dir string) {
	id.Type = TypeMD
	uuid := l.read(dir, "md/uuid")
	if uuid == "" {
		uuid = hexDigits(strings.TrimPrefix(l.linkTo("/dev/disk/by-id", "md-uuid-", id.Path), "md-uuid-"))
		if l.read(dir, "md/metadata_version") == "0.90" {
			uuid = swapWords(uuid)
		}
	}
	if uuid = hexDigits(uuid); len(uuid) == 32 && strings.Trim(uuid, "0") != "" {
		id.Name = "md:" + uuid
		id.step("%s is the array %s", id.Path, uuid)
	}
}

// swapWords writes the bytes of each word of hexadecimal digits the other way round.
func swapWords(digits string) string {
	b, err := hex.DecodeString(digits)
	if err != nil || len(b)%4 != 0 {
		return ""
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return hex.EncodeToString(b)
}

// hexDigits leaves out what separates groups of them.
func hexDigits(s string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune("0123456789abcdef", c) {
			return c
		}
		return -1
	}, strings.ToLower(s))
}

// linkTo is the name of a link in dir that leads to a device, the first if there
// are several.
func (l *lookup) linkTo(dir, prefix, device string) string {
	names, _ := l.list(dir)
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) {
			continue
		}
		if p, err := l.real(dir, n); err == nil && p == device {
			return n
		}
	}
	return ""
}

// drbd takes the resource's name from the link that udev makes: it is the same on
// all hosts, as DRBD's own configuration is. A resource of which the configuration has
// no volume by number has number 0, and the link is where others have a directory
// (drbdadm sh-udev).
func (l *lookup) drbd(id *Identity, kernelName string) {
	id.Type = TypeDRBD
	const dir = "/dev/drbd/by-res"
	resources, _ := l.list(dir)
	for _, res := range resources {
		volume := ""
		if p, err := l.real(dir, res); err == nil && p == "/dev/"+kernelName {
			volume = "0"
		} else {
			volume = l.linkTo(dir+"/"+res, "", "/dev/"+kernelName)
		}
		if volume != "" {
			id.Name = fmt.Sprintf("drbd:%s/%s", res, volume)
			id.step("%s is volume %s of the DRBD resource %s", id.Path, volume, res)
			return
		}
	}
}

// rbd: Documentation/ABI/testing/sysfs-bus-rbd.
func (l *lookup) rbd(id *Identity, kernelName string) {
	id.Type = TypeRBD
	at := "/sys/bus/rbd/devices/" + strings.TrimPrefix(kernelName, "rbd")
	pool, image, fsid := l.read(at, "pool_id"), l.read(at, "image_id"), l.read(at, "cluster_fsid")
	if pool == "" || image == "" {
		return
	}
	// The snapshot's number is 2^64-2 (CEPH_NOSNAP) for the image itself.
	snap := l.read(at, "snap_id")
	if snap == "18446744073709551614" {
		snap = ""
	}
	id.Name = strings.Join([]string{"rbd:" + strings.ToLower(fsid), pool, l.read(at, "pool_ns"), image, snap}, "/")
	id.step("%s is the image %s (%s) in pool %s of the Ceph cluster %s", id.Path, l.read(at, "name"), image, l.read(at, "pool"), fsid)
}

// loop is what its file is. The part of the file that it shows does not count: two
// parts may overlap.
func (l *lookup) loop(id *Identity, dir string, depth int) error {
	id.Type = TypeLoop
	backing := l.read(dir, "loop/backing_file")
	if backing == "" {
		return fmt.Errorf("%w: the loop device %s has no file", ErrContradiction, id.Path)
	}
	if strings.HasSuffix(backing, " (deleted)") {
		return fmt.Errorf("%w: the file of the loop device %s has no name any more: %s", ErrContradiction, id.Path, backing)
	}
	n, err := l.look(backing)
	if err != nil {
		return fmt.Errorf("look up the file of the loop device %s: %w", id.Path, err)
	}
	id.step("%s shows %s", id.Path, backing)
	under := Identity{Path: n.path}
	if n.mode&unix.S_IFMT == unix.S_IFBLK {
		under, err = l.block(n.rdev, depth+1)
		under.Local = "block device " + n.rdev.String()
	} else {
		err = l.file(&under, n, depth+1)
	}
	id.Steps = append(id.Steps, under.Steps...)
	id.Scope, id.Name, id.ByPath, id.Doubt, id.Local = under.Scope, under.Name, under.ByPath, under.Doubt, under.Local
	return err
}
