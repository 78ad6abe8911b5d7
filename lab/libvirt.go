package lab

import (
	"context"
	"encoding/xml"
	"fmt"
	"strings"
)

// The nodes' domains are of the 32-bit kind. The guests do not care, and libvirt starts them in 3 s instead of 15: of the 64-bit QEMU it
// asks 400 questions about its processor, one by one, and QEMU's monitor reads each byte by byte, with seven system calls per byte.
const (
	guestArch     = "i686"
	stockEmulator = "/usr/bin/qemu-system-i386"
	// emulator is the lab's own program under that name, which starts QEMU with its image locks off.
	emulator = "/usr/local/bin/qemu-system-i386"
)

// Access says how a domain uses a disk, and so which lock libvirt asks for.
type Access string

// Ways of using a disk.
const (
	Exclusive Access = ""          // writable, one domain at a time
	Shareable Access = "shareable" // <shareable/>: writable, by domains that know what they do
	ReadOnly  Access = "readonly"  // <readonly/>: libvirt asks for no lock
)

// Disk is a disk of a domain.
type Disk struct {
	// Path in the node: a file, or a block device if it begins with /dev/.
	Path   string
	Access Access
	// Target is the name that libvirt knows it by. Empty: vda, vdb and so on by its place, or sda for USB.
	Target string
	// Bus is how the guest sees it: virtio if empty, or usb, which can be unplugged from a guest that does not cooperate.
	Bus string
	// Format is raw if empty, or qcow2 (which snapshots need).
	Format string
	// Cache is writethrough if empty: hostfs has no O_DIRECT, which the usual "none" needs, and what stays in one node's cache
	// the other nodes do not see.
	Cache string

	boot int // its place in the order of the BIOS, which leaves out disks without one, from 1; 0 for none
}

// Lease is a <lease> of a domain.
type Lease struct {
	Lockspace string // may be empty
	Key       string
	Path      string // of the target, which libvirt wants to see; it need not exist for every lock daemon
	Offset    uint64 // bytes
}

// Domain is a virtual machine. Its guest is what the first disk's boot sector says; see IdleGuest and the like.
type Domain struct {
	Name string
	// UUID: empty lets libvirt choose.
	UUID string
	// MemoryMB is in MiB; 0 means 16, enough for a BIOS and a boot sector.
	MemoryMB int
	// ACPI gives the guest the power management hardware by which it can switch itself off.
	ACPI   bool
	Disks  []Disk
	Leases []Lease
	// AllDisks has the BIOS serve all disks to the guest, and not only the first one, from which it boots.
	AllDisks bool
	// OnReboot is libvirt's on_reboot, such as "destroy"; empty leaves libvirt's default, restart.
	OnReboot string
	// QemuLocks must be that of the lab's Config.
	QemuLocks bool
}

// XML is the domain in libvirt's format: no graphics, no network, a USB controller for hot-plug.
func (d Domain) XML() string {
	var b strings.Builder
	memory := d.MemoryMB
	if memory == 0 {
		memory = 16
	}
	emu := emulator
	if d.QemuLocks {
		emu = stockEmulator
	}
	fmt.Fprintf(&b, "<domain type='qemu'>\n  <name>%s</name>\n", escape(d.Name))
	if d.UUID != "" {
		fmt.Fprintf(&b, "  <uuid>%s</uuid>\n", escape(d.UUID))
	}
	fmt.Fprintf(&b, "  <memory unit='MiB'>%d</memory>\n  <vcpu>1</vcpu>\n", memory)
	boot := "<boot dev='hd'/>"
	if d.AllDisks {
		boot = "" // each disk has its own
	}
	b.WriteString("  <os><type arch='" + guestArch + "' machine='pc'>hvm</type>" + boot + "</os>\n")
	if d.ACPI {
		b.WriteString("  <features><acpi/></features>\n")
	}
	if d.OnReboot != "" {
		fmt.Fprintf(&b, "  <on_reboot>%s</on_reboot>\n", escape(d.OnReboot))
	}
	fmt.Fprintf(&b, "  <devices>\n    <emulator>%s</emulator>\n", emu)
	for i, disk := range d.Disks {
		if disk.Target == "" && disk.Bus == "" {
			disk.Target = "vd" + string(rune('a'+i))
		}
		if d.AllDisks {
			disk.boot = i + 1
		}
		b.WriteString(disk.XML())
	}
	for _, l := range d.Leases {
		b.WriteString(l.XML())
	}
	b.WriteString("    <controller type='usb' model='piix3-uhci'/>\n    <memballoon model='none'/>\n  </devices>\n</domain>\n")
	return b.String()
}

// XML is the disk in libvirt's format, also for attach-device.
func (d Disk) XML() string {
	or := func(s, def string) string {
		if s == "" {
			return def
		}
		return s
	}
	typ, attr := "file", "file"
	if strings.HasPrefix(d.Path, "/dev/") {
		typ, attr = "block", "dev"
	}
	bus := or(d.Bus, "virtio")
	target := or(d.Target, map[string]string{"virtio": "vda"}[bus])
	target = or(target, "sda")
	access := ""
	if d.Access != Exclusive {
		access = fmt.Sprintf("<%s/>", d.Access)
	}
	if d.boot > 0 {
		access += fmt.Sprintf("<boot order='%d'/>", d.boot)
	}
	return fmt.Sprintf("    <disk type='%s' device='disk'><driver name='qemu' type='%s' cache='%s'/><source %s='%s'/><target dev='%s' bus='%s'/>%s</disk>\n",
		typ, escape(or(d.Format, "raw")), escape(or(d.Cache, "writethrough")), attr, escape(d.Path), escape(target), escape(bus), access)
}

// XML is the lease in libvirt's format.
func (l Lease) XML() string {
	space := ""
	if l.Lockspace != "" {
		space = "<lockspace>" + escape(l.Lockspace) + "</lockspace>"
	}
	return fmt.Sprintf("    <lease>%s<key>%s</key><target path='%s' offset='%d'/></lease>\n", space, escape(l.Key), escape(l.Path), l.Offset)
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}

// WaitLibvirt waits until the node's libvirtd answers and has asked QEMU what it can do, which takes it some seconds.
func (n *Node) WaitLibvirt(ctx context.Context) error {
	var last Result
	err := WaitFor(ctx, "libvirtd to answer", func(ctx context.Context) (bool, error) {
		res, err := n.Virsh(ctx, "capabilities")
		if err != nil {
			return false, err
		}
		last = res
		if res.OK() {
			return true, nil
		}
		return false, n.Service(ServiceLibvirt).alive(ctx)
	})
	if err != nil {
		return fmt.Errorf("%s: %w; last: %s", n.Name(), err, last.Stderr)
	}
	return nil
}

// Virsh runs virsh in the node, against the node's own libvirtd. What virsh reports as an error is in the Result.
func (n *Node) Virsh(ctx context.Context, args ...string) (Result, error) {
	return n.Exec(ctx, "virsh", append([]string{"--connect", "qemu:///system"}, args...)...)
}

// virshXML runs a virsh command with the name of a file that holds text.
func (n *Node) virshXML(ctx context.Context, text string, before []string, after ...string) (Result, error) {
	args := append([]string{"--connect", "qemu:///system"}, before...)
	args = append(append(args, "/dev/stdin"), after...)
	return n.Run(ctx, Cmd{Args: append([]string{"virsh"}, args...), Stdin: []byte(text)})
}

// Create starts a transient domain: nothing is left of it when it ends.
func (n *Node) Create(ctx context.Context, d Domain, flags ...string) (Result, error) {
	return n.virshXML(ctx, d.XML(), []string{"create"}, flags...)
}

// Define makes a domain known to libvirt, to be started with `virsh start`.
func (n *Node) Define(ctx context.Context, d Domain) (Result, error) {
	return n.virshXML(ctx, d.XML(), []string{"define"})
}

// Destroy pulls a domain's plug.
func (n *Node) Destroy(ctx context.Context, domain string) (Result, error) {
	return n.Virsh(ctx, "destroy", domain)
}

// Migrate moves a running domain to another node, live, with its disks where they are. It passes --unsafe, because libvirt does not know
// that SharedDir is shared, and takes files only on file systems that it knows.
func (n *Node) Migrate(ctx context.Context, domain string, to *Node, flags ...string) (Result, error) {
	args := append([]string{"migrate", "--live", "--unsafe"}, flags...)
	return n.Virsh(ctx, append(args, domain, "qemu+tcp://"+to.Name()+"/system")...)
}

// Attach plugs a disk into a running domain.
func (n *Node) Attach(ctx context.Context, domain string, d Disk) (Result, error) {
	return n.virshXML(ctx, d.XML(), []string{"attach-device", domain}, "--live")
}

// Detach unplugs a disk from a running domain. libvirt reports the request; the disk is gone when DomainXML no longer has it. The
// lab's guests do not answer to the unplugging of PCI devices; use disks on the USB bus.
func (n *Node) Detach(ctx context.Context, domain string, d Disk) (Result, error) {
	return n.virshXML(ctx, d.XML(), []string{"detach-device", domain}, "--live")
}

// DomainXML is what libvirt knows about a domain now.
func (n *Node) DomainXML(ctx context.Context, domain string) (string, error) {
	res, err := n.MustSucceed(ctx, "virsh", "--connect", "qemu:///system", "dumpxml", domain)
	return res.Stdout, err
}

// DomainState is virsh's word for a domain's state, such as "running", "paused" or "shut off"; empty if libvirt knows no
// such domain, as after the end of a transient one.
func (n *Node) DomainState(ctx context.Context, domain string) (string, error) {
	res, err := n.Virsh(ctx, "domstate", domain)
	if err != nil {
		return "", err
	}
	if !res.OK() {
		if strings.Contains(res.Stderr, "failed to get domain") || strings.Contains(res.Stderr, "Domain not found") {
			return "", nil
		}
		return "", fmt.Errorf("%s: domstate: %v", n.Name(), res)
	}
	return strings.TrimSpace(res.Stdout), nil
}

// WaitDomain waits until a domain is in a state, as DomainState says it; an empty state means gone.
func (n *Node) WaitDomain(ctx context.Context, domain, state string) error {
	last := ""
	err := WaitFor(ctx, fmt.Sprintf("domain %s in state %q", domain, state), func(ctx context.Context) (bool, error) {
		s, err := n.DomainState(ctx, domain)
		if err == nil {
			last = s
		}
		return s == state, err
	})
	if err != nil {
		return fmt.Errorf("%s: %w; last: %q", n.Name(), err, last)
	}
	return nil
}
