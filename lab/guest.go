package lab

import "encoding/binary"

// Guests are disk images of a few sectors whose boot sector is the whole guest: no kernel, no file system, up within the second that
// the BIOS takes. The BIOS loads the first 512 bytes to address 0x7c00 and jumps there in 16-bit real mode.

const (
	sectorSize = 512
	// imageSize is that of all guests' images, in bytes. On the virtio bus the BIOS sees no cylinder on a disk of less than half a MiB, and
	// does not boot from it.
	imageSize = 1 << 20
	// CounterOffset is where CountingGuest writes, in bytes from the start of its image.
	CounterOffset = sectorSize
	// ticksPerSecond of the BIOS's timer is 18.2.
	ticksPerSecond = 18.2
)

// Codes of the 8086.
var (
	// idle waits for interrupts, which the timer sends 18 times a second, for ever.
	idle = []byte{
		0xfb,       // sti
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to hlt
	}
	// powerOff is what ACPI tells a system to do on QEMU's "pc" machine: SLP_EN with sleep type 0 into the PM1a control register. Its
	// BIOS has put the power management ports at 0x600. Without ACPI there is no such port, and nothing happens.
	powerOff = []byte{
		0xba, 0x04, 0x06, // mov dx, 0x604
		0xb8, 0x00, 0x20, // mov ax, 0x2000
		0xef, // out dx, ax
	}
	// reset pulses the processor's reset line through the keyboard controller. A domain with OnReboot "destroy" ends by it.
	reset = []byte{
		0xb0, 0xfe, // mov al, 0xfe
		0xe6, 0x64, // out 0x64, al
	}
)

// image is a disk with that boot sector.
func image(code ...[]byte) []byte {
	img := make([]byte, imageSize)
	at := 0
	for _, c := range code {
		at += copy(img[at:sectorSize-2], c)
	}
	// The mark of a boot sector.
	img[510], img[511] = 0x55, 0xaa
	return img
}

// wait is code that halts until the BIOS's tick counter (at 0040:006c) has advanced by so many ticks.
func wait(ticks uint16) []byte {
	code := []byte{
		0xfb,             // sti
		0xb8, 0x40, 0x00, // mov ax, 0x40
		0x8e, 0xd8, // mov ds, ax
		0x8b, 0x1e, 0x6c, 0x00, // mov bx, [0x6c]
		0xf4,             // again: hlt
		0xa1, 0x6c, 0x00, // mov ax, [0x6c]
		0x29, 0xd8, // sub ax, bx
		0x3d, 0x00, 0x00, // cmp ax, ticks
		0x72, 0xf5, // jb again
	}
	binary.LittleEndian.PutUint16(code[len(code)-4:], ticks)
	return code
}

// IdleGuest is the disk image of a guest that does nothing, for ever.
func IdleGuest() []byte { return image(idle) }

// PowerOffGuest is the disk image of a guest that switches itself off after so many seconds (at most 3600), or right away for 0. The
// domain needs ACPI.
func PowerOffGuest(seconds int) []byte {
	return image(wait(uint16(float64(min(seconds, 3600))*ticksPerSecond)), powerOff, idle)
}

// RebootGuest is the disk image of a guest that resets itself after so many seconds (at most 3600).
func RebootGuest(seconds int) []byte {
	return image(wait(uint16(float64(min(seconds, 3600))*ticksPerSecond)), reset, idle)
}

// begin is how guests begin that use their disks.
var begin = []byte{
	0x31, 0xc0, // xor ax, ax
	0x8e, 0xd8, // mov ds, ax
	0x8e, 0xc0, // mov es, ax
	0x8e, 0xd0, // mov ss, ax
	0xbc, 0x00, 0x7c, // mov sp, 0x7c00
	0x88, 0x16, 0x00, 0x7a, // mov [0x7a00], dl: the drive that the BIOS has booted from
	0xfb, // sti
}

// disk is what such a guest ends with, which it calls with ax: one sector, the second one, of the drive whose number is at 0x7a00, from or to 0x8000.
var disk = []byte{
	0xbb, 0x00, 0x80, // disk: mov bx, 0x8000: buffer
	0xb9, 0x02, 0x00, // mov cx, 0x0002: cylinder 0, sector 2
	0xb6, 0x00, // mov dh, 0: head
	0x8a, 0x16, 0x00, 0x7a, // mov dl, [0x7a00]
	0xcd, 0x13, // int 0x13
	0xc3, // ret
}

// CountingGuest is the disk image of a guest that writes to its disk at every tick of the timer: a counter, 32 bits little endian, at
// CounterOffset. It starts with what the disk has there, so it goes on where the last one stopped. A failed write is not counted.
func CountingGuest() []byte {
	return image(begin, []byte{
		0xb8, 0x01, 0x02, // mov ax, 0x0201: read one sector
		0xe8, 0x1a, 0x00, // call disk
		0x72, 0xf8, // jc to the read
		0xf4,                         // next: hlt
		0x66, 0xff, 0x06, 0x00, 0x80, // inc dword [0x8000]
		0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
		0xe8, 0x0c, 0x00, // call disk
		0x73, 0xf2, // jnc next
		0x66, 0xff, 0x0e, 0x00, 0x80, // dec dword [0x8000]
		0xeb, 0xeb, // jmp next
		0x90, 0x90, 0x90, // nop
	}, disk)
}

// DiaryGuest is CountingGuest for a domain with two disks: what it has written to the first one, from which it boots, it writes to
// the same place of the second one after that. So the second one, which no other domain has, tells until when this one has written to the first.
// The domain needs AllDisks.
func DiaryGuest() []byte {
	return image(begin, []byte{
		0xb8, 0x01, 0x02, // mov ax, 0x0201: read one sector
		0xe8, 0x27, 0x00, // call disk
		0x72, 0xf8, // jc to the read
		0xf4,                         // next: hlt
		0x66, 0xff, 0x06, 0x00, 0x80, // inc dword [0x8000]
		0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
		0xe8, 0x19, 0x00, // call disk
		0x73, 0x07, // jnc diary
		0x66, 0xff, 0x0e, 0x00, 0x80, // dec dword [0x8000]
		0xeb, 0xeb, // jmp next
		0xb8, 0x01, 0x03, // diary: mov ax, 0x0301
		0xfe, 0x06, 0x00, 0x7a, // inc byte [0x7a00]: the drive after that
		0xe8, 0x06, 0x00, // call disk
		0xfe, 0x0e, 0x00, 0x7a, // dec byte [0x7a00]
		0xeb, 0xdb, // jmp next
	}, disk)
}

// Counter reads what CountingGuest or DiaryGuest has counted from a copy of its image.
func Counter(image []byte) uint32 {
	if len(image) < CounterOffset+4 {
		return 0
	}
	return binary.LittleEndian.Uint32(image[CounterOffset:])
}
