package identity

import (
	"fmt"
	"path"
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

// DeviceTypes lists them.
func DeviceTypes() []string {
	return []string{TypeLVM, TypeMultipath, TypeCrypt, TypeMapper, TypeSCSI, TypeISCSI, TypeNVMe, TypeDRBD, TypeRBD, TypeNBD, TypeMD, TypeLoop, TypeBlock}
}

// maxDepth bounds how deep devices and files lie upon one another.
const maxDepth = 16

// device names a block device.
func (r *Resolver) device(id *Identity, n node) error {
	id.Local = "block device " + n.rdev.String()
	d, err := r.block(n.rdev, 0)
	id.Steps = append(id.Steps, d.Steps...)
	if err != nil {
		return err
	}
	if d.Path != "" {
		id.Path = d.Path
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
func (r *Resolver) block(dev number, depth int) (Identity, error) {
	id := Identity{Type: TypeBlock}
	dir, err := r.real("/sys/dev/block", dev.String())
	if err != nil {
		id.step("block device %s is not in sysfs", dev)
		return id, nil
	}
	return r.blockAt(dir, depth)
}

// blockAt is block for a directory below /sys/devices.
func (r *Resolver) blockAt(dir string, depth int) (id Identity, err error) {
	id.Type = TypeBlock
	if depth > maxDepth {
		return id, fmt.Errorf("%w: more than %d devices lie upon one another", ErrContradiction, maxDepth)
	}
	kernelName := strings.ReplaceAll(path.Base(dir), "!", "/")
	id.Path = "/dev/" + kernelName
	if part := r.read(dir, "partition"); part != "" {
		return r.partition(id, dir, part, depth)
	}
	switch {
	case r.exists(dir, "dm"):
		err = r.mapper(&id, dir, depth)
	case r.exists(dir, "loop"):
		err = r.loop(&id, dir, depth)
	case r.exists(dir, "md"):
		r.md(&id, dir)
	case strings.HasPrefix(kernelName, "drbd"):
		r.drbd(&id, kernelName)
	case strings.HasPrefix(kernelName, "rbd"):
		r.rbd(&id, kernelName)
	case strings.HasPrefix(kernelName, "nbd"):
		r.nbd(&id, dir)
	case strings.HasPrefix(kernelName, "nvme"):
		id.Type = TypeNVMe
		if wwid := usable(r.read(dir, "wwid")); wwid != "" {
			id.Name = "nvme:" + wwid
			id.step("%s is the NVMe namespace %s", id.Path, wwid)
		}
	default:
		r.scsi(&id, dir)
	}
	if err == nil && id.Name == "" {
		id.step("%s: the kernel tells nothing that would be the same on another host", id.Path)
		id.Name, id.ByPath, id.Doubt = id.Path, true, true
	}
	return id, err
}

// partition is a part of what its disk is.
func (r *Resolver) partition(id Identity, dir, part string, depth int) (Identity, error) {
	disk, err := r.blockAt(path.Dir(dir), depth+1)
	if err != nil {
		return disk, err
	}
	disk.step("%s is partition %s of it", id.Path, part)
	if disk.ByPath && !inShare(disk.Name) {
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
func (r *Resolver) scsi(id *Identity, dir string) {
	if !r.exists(dir, "device/vpd_pg83") && !r.exists(dir, "device/wwid") && !r.exists(dir, "device/scsi_level") {
		return
	}
	id.Type = TypeSCSI
	real, err := r.real(dir, "device")
	session := ""
	if err == nil {
		session = iscsiSession().FindString(real)
	}
	if session != "" {
		id.Type = TypeISCSI
	}
	wwid := usable(r.read(dir, "device/wwid"))
	if wwid == "" {
		wwid = usable(pickDesignator(r.readBytes(dir, "device/vpd_pg83")))
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
	target := r.read(session, "iscsi_session", name, "targetname")
	address := strings.Split(path.Base(real), ":")
	if target != "" && len(address) == 4 {
		id.Name = fmt.Sprintf("iscsi:%s/%s", strings.ToLower(target), address[3])
		id.step("%s is unit %s of the iSCSI target %s", id.Path, address[3], target)
	}
}

// iscsiSession is the part of a device's path up to its iSCSI session.
var iscsiSession = lazyregexp.New(`^.*/session\d+`)

// md takes the array's UUID from the kernel, or from the link that udev makes.
func (r *Resolver) md(id *Identity, dir string) {
	id.Type = TypeMD
	uuid := r.read(dir, "md/uuid")
	if uuid == "" {
		uuid = strings.TrimPrefix(r.linkTo("/dev/disk/by-id", "md-uuid-", id.Path), "md-uuid-")
	}
	if uuid = hexDigits(uuid); len(uuid) == 32 && strings.Trim(uuid, "0") != "" {
		id.Name = "md:" + uuid
		id.step("%s is the array %s", id.Path, uuid)
	}
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
func (r *Resolver) linkTo(dir, prefix, device string) string {
	names, _ := r.list(dir)
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) {
			continue
		}
		if p, err := r.real(dir, n); err == nil && p == device {
			return n
		}
	}
	return ""
}

// drbd takes the resource's name from the link that udev makes: it is the same on
// all hosts, as DRBD's own configuration is.
func (r *Resolver) drbd(id *Identity, kernelName string) {
	id.Type = TypeDRBD
	const dir = "/dev/drbd/by-res"
	resources, _ := r.list(dir)
	for _, res := range resources {
		if volume := r.linkTo(dir+"/"+res, "", "/dev/"+kernelName); volume != "" {
			id.Name = fmt.Sprintf("drbd:%s/%s", res, volume)
			id.step("%s is volume %s of the DRBD resource %s", id.Path, volume, res)
			return
		}
	}
}

// rbd: Documentation/ABI/testing/sysfs-bus-rbd.
func (r *Resolver) rbd(id *Identity, kernelName string) {
	id.Type = TypeRBD
	at := "/sys/bus/rbd/devices/" + strings.TrimPrefix(kernelName, "rbd")
	pool, image, fsid := r.read(at, "pool_id"), r.read(at, "image_id"), r.read(at, "cluster_fsid")
	if pool == "" || image == "" {
		return
	}
	// The snapshot's number is 2^64-2 (CEPH_NOSNAP) for the image itself.
	snap := r.read(at, "snap_id")
	if snap == "18446744073709551614" {
		snap = ""
	}
	id.Name = strings.Join([]string{"rbd:" + strings.ToLower(fsid), pool, r.read(at, "pool_ns"), image, snap}, "/")
	id.step("%s is the image %s (%s) in pool %s of the Ceph cluster %s", id.Path, r.read(at, "name"), image, r.read(at, "pool"), fsid)
}

// nbd: only the client's program knows the export; the kernel has what it told
// (NBD_ATTR_BACKEND_IDENTIFIER of <linux/nbd-netlink.h>). Either is what somebody has
// written on this host: a server has several names and addresses, so it is doubtful.
// rbd-nbd tells a random UUID unless it has --cookie, which names nothing.
func (r *Resolver) nbd(id *Identity, dir string) {
	id.Type = TypeNBD
	const otherwise = "to a host where it is called otherwise it is another disk"
	if backend := r.read(dir, "backend"); backend != "" && !plainUUID().MatchString(backend) {
		id.Name, id.Doubt = "nbd:"+backend, true
		id.step("%s is the export that its client calls %s; %s", id.Path, backend, otherwise)
		return
	}
	if name := nbdExport(r.readBytes("/proc", r.read(dir, "pid"), "cmdline")); name != "" {
		id.Name, id.Doubt = "nbd:"+name, true
		id.step("%s is %s, says the command line of its client; %s", id.Path, name, otherwise)
	}
}

var plainUUID = lazyregexp.New(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// loop is what its file is. The part of the file that it shows does not count: two
// parts may overlap.
func (r *Resolver) loop(id *Identity, dir string, depth int) error {
	id.Type = TypeLoop
	backing := r.read(dir, "loop/backing_file")
	if backing == "" {
		return fmt.Errorf("%w: the loop device %s has no file", ErrContradiction, id.Path)
	}
	if strings.HasSuffix(backing, " (deleted)") {
		return fmt.Errorf("%w: the file of the loop device %s has no name any more: %s", ErrContradiction, id.Path, backing)
	}
	n, err := r.host.look(backing)
	if err != nil {
		return fmt.Errorf("look up the file of the loop device %s: %w", id.Path, err)
	}
	id.step("%s shows %s", id.Path, backing)
	under := Identity{Path: n.path}
	if n.mode&unix.S_IFMT == unix.S_IFBLK {
		under, err = r.block(n.rdev, depth+1)
		under.Local = "block device " + n.rdev.String()
	} else {
		err = r.file(&under, n, depth+1)
	}
	id.Steps = append(id.Steps, under.Steps...)
	id.Scope, id.Name, id.ByPath, id.Doubt, id.Local = under.Scope, under.Name, under.ByPath, under.Doubt, under.Local
	return err
}
