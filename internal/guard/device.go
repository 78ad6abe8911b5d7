package guard

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a watchdog of the kernel (Documentation/watchdog/watchdog-api.rst).
type Device struct {
	Path    string
	Timeout time.Duration // whole seconds; 0 for what it has

	mu  sync.Mutex
	f   *os.File
	sys string // where sysfs is; "" for /sys
	// options are the WDIOF_ ones that the driver has (WDIOC_GETSUPPORT); nil to ask the device.
	options func(*os.File) (uint32, error)
	// setOption is WDIOC_SETOPTIONS; nil to have the device do it.
	setOption func(f *os.File, option int) error
	// left: it runs already, and resets the host if nobody feeds it.
	left  bool
	stays error // why it cannot be disarmed; nil if it can, or if that was not tried yet
}

// ErrStays is about a watchdog that its driver never stops again (nowayout): somebody has to feed it until the next boot.
var ErrStays = errors.New("cannot be stopped any more (nowayout)")

// Left says that an earlier daemon has left the device running. Then it is opened also if its driver
// never stops it (nowayout), as versions did that did not look: it has to be fed.
func (d *Device) Left() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = true
}

// LeftDevice is the watchdog at path, which an earlier daemon has left running, to be fed and disarmed. It keeps its timeout: there is none
// that every device can do, and the others may count on the one that it has.
func LeftDevice(path string) *Device {
	return &Device{Path: path, left: true}
}

// magicClose is what says that a close is meant (watchdog-api.rst).
const magicClose = "V"

// Feed opens the device if it is not open. A device that others have open cannot
// be: the error says so, and it is tried again the next time.
func (d *Device) Feed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.f == nil {
		if err := d.lockedOpen(); err != nil {
			return err
		}
	}
	if _, err := d.f.Write([]byte{0}); err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	return nil
}

// endless reports whether the driver never stops the device again that was opened once (nowayout): then whoever stops
// vmlockd would have this host reset.
func (d *Device) endless() bool {
	yes, _ := d.nowayout()
	return yes
}

// nowayout is what sysfs says of that. Not all kernels do (CONFIG_WATCHDOG_SYSFS).
func (d *Device) nowayout() (yes, known bool) {
	var st unix.Stat_t
	if unix.Stat(d.Path, &st) != nil {
		return false, false // so is opening it
	}
	sys := cmp.Or(d.sys, "/sys")
	dir := fmt.Sprintf("%s/dev/char/%d:%d", sys, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if unix.Major(st.Rdev) == 10 && unix.Minor(st.Rdev) == 130 { // /dev/watchdog: WATCHDOG_MINOR of linux/miscdevice.h, the first one
		dir = sys + "/class/watchdog/watchdog0"
	}
	b, err := os.ReadFile(dir + "/nowayout")
	return err == nil && strings.TrimSpace(string(b)) == "1", err == nil
}

// lockedTry finds out whether a device that was just opened can be stopped again, where sysfs does not tell: people are to know before they
// stop vmlockd. It stands still for a moment in which nothing else can happen to this process.
func (d *Device) lockedTry(f *os.File) error {
	if _, known := d.nowayout(); known {
		return nil
	}
	err := d.set(f, unix.WDIOS_DISABLECARD)
	if errors.Is(err, unix.EBUSY) {
		d.lockedStays()
	}
	if err != nil {
		return nil // it goes on
	}
	if err := d.set(f, unix.WDIOS_ENABLECARD); err != nil {
		return fmt.Errorf("%s was stopped, and does not start again: %w", d.Path, err)
	}
	return nil
}

func (d *Device) set(f *os.File, option int) error {
	if d.setOption != nil {
		return d.setOption(f, option)
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETOPTIONS, option)
}

// stoppedByAnyClose reports whether the driver takes the end of the process that has the device for a wish to stop it
// (watchdog_release in drivers/watchdog/watchdog_dev.c): then it protects from a vmlockd that hangs, and not from one that is killed,
// which the other hosts count on. A driver that does not say what it has is not taken for such a one.
func (d *Device) stoppedByAnyClose(f *os.File) bool {
	options := d.options
	if options == nil {
		options = func(f *os.File) (uint32, error) {
			info, err := unix.IoctlGetWatchdogInfo(int(f.Fd()))
			return info.Options, err
		}
	}
	has, err := options(f)
	return err == nil && has&unix.WDIOF_MAGICCLOSE == 0 && !d.endless()
}

func (d *Device) lockedOpen() error {
	if !d.left && d.endless() {
		return fmt.Errorf("%s cannot be stopped any more once it was opened (nowayout), so that stopping vmlockd would reset this host: load its driver with nowayout=0 "+
			"(options softdog nowayout=0 in /etc/modprobe.d), or leave guard.watchdog empty", d.Path)
	}
	f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s belongs to another program already (sbd, wdmd, watchdog-mux?): leave guard.watchdog empty, or give vmlockd a device of its own: %w", d.Path, err)
	}
	if err != nil {
		return err
	}
	if d.Timeout > 0 && d.stoppedByAnyClose(f) {
		return errors.Join(fmt.Errorf("%s is stopped by its driver when the program that has it is killed (it has no magic close), so that it would not reset this host: "+
			"name another device in guard.watchdog, such as that of softdog, or leave it empty", d.Path), closeMagic(f))
	}
	want := int(d.Timeout / time.Second)
	if want == 0 {
		if has, err := unix.IoctlGetInt(int(f.Fd()), unix.WDIOC_GETTIMEOUT); err == nil {
			d.Timeout = time.Duration(has) * time.Second
		}
		d.f = f
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, want); err != nil {
		return errors.Join(fmt.Errorf("%s does not take a timeout of %v: %w", d.Path, d.Timeout, err), closeMagic(f))
	}
	// Drivers round as they can.
	if got, err := unix.IoctlGetInt(int(f.Fd()), unix.WDIOC_GETTIMEOUT); err != nil || got > want {
		return errors.Join(fmt.Errorf("%s has made a timeout of %d s of %v (%v): set guard.watchdog_timeout to what it can do", d.Path, got, d.Timeout, err), closeMagic(f))
	}
	if err := d.lockedTry(f); err != nil {
		return errors.Join(err, closeMagic(f))
	}
	d.f = f
	return nil
}

// Disarm closes the device with the letter that says that it is meant so. One whose driver does not stop it (nowayout) stays
// open, to be fed: the error is an ErrStays then.
func (d *Device) Disarm() error {
	return d.end(func(f *os.File) error {
		if d.stays == nil {
			// The letter alone is taken without a word also where it changes nothing (watchdog_release in drivers/watchdog/watchdog_dev.c).
			if !errors.Is(d.set(f, unix.WDIOS_DISABLECARD), unix.EBUSY) && !d.endless() {
				return closeMagic(f)
			}
			d.lockedStays() // it is not asked again: that never changes, and the kernel logs each attempt
		}
		d.f = f
		return d.stays
	})
}

// Stays is an ErrStays if the device runs and is known never to be stopped again. What the kernel does not tell is known after Disarm.
func (d *Device) Stays() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stays == nil && (d.left || d.f != nil) && d.endless() {
		d.lockedStays()
	}
	return d.stays
}

func (d *Device) lockedStays() {
	d.stays = fmt.Errorf("%s %w, and is fed while vmlockd runs: if vmlockd is stopped, or ends and is not started again in time, this host is reset after %v. "+
		"Before you stop vmlockd, move the virtual machines away; then reboot the host, with nowayout=0 for the driver (options softdog nowayout=0 in /etc/modprobe.d) "+
		"or with guard.watchdog left empty", d.Path, ErrStays, d.Timeout)
}

// Leave closes the device without that letter: it runs down, and whoever opens it next
// has to feed it before it resets the host. That is for another guard of this
// process, which cannot open it while it is open here.
func (d *Device) Leave() error {
	return d.end((*os.File).Close)
}

// end closes the device, in one way or the other, if it is open.
func (d *Device) end(how func(*os.File) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.f == nil {
		return nil
	}
	f := d.f
	d.f = nil
	return how(f)
}

func closeMagic(f *os.File) error {
	_, err := f.WriteString(magicClose)
	return errors.Join(err, f.Close())
}
