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

// dogState is what the guard knows of its watchdog.
type dogState struct {
	open bool
	left bool   // an earlier daemon has left it open, so it runs down
	err  string // what the log was told last
}

func (d dogState) text(configured bool) string {
	switch {
	case !configured:
		return ""
	case d.err != "":
		return d.err
	case d.open:
		return "open"
	}
	return "closed"
}

// lockedDog feeds the watchdog while there is something to protect and the promise
// is kept, and disarms it when there is nothing any more.
func (g *Guard) lockedDog(v view, mode Mode) {
	if g.o.Dog == nil {
		return
	}
	// While the mode is not known the worst is to be expected.
	if mode == Fencing || len(g.owners) == 0 && len(g.frozen) == 0 {
		if g.dog.left {
			// The earlier daemon did not live to disarm it.
			g.dog = dogState{open: g.o.Dog.Feed() == nil}
		}
		g.lockedDisarm()
		return
	}
	if !g.lockedKept(v) {
		return // the host is reset, unless it can be kept yet
	}
	err := g.o.Dog.Feed()
	if err == nil {
		was := g.dog.open
		g.dog = dogState{open: true}
		if !was {
			g.lockedDogNews("watchdog is armed: it resets this host if vmlockd does not keep its promise")
		}
		return
	}
	if text := err.Error(); g.dog.err != text {
		g.dog.err = text
		g.log.Error("the watchdog cannot be used; this host is not reset if vmlockd hangs", "event", "guard-failed", "reason", err)
	}
}

func (g *Guard) lockedDisarm() {
	if !g.dog.open {
		g.dog.err = ""
		return
	}
	if err := g.o.Dog.Disarm(); err != nil {
		_ = g.o.Dog.Feed() // nothing is to be reset for that while vmlockd runs
		if g.dog.err != err.Error() {
			g.dog.err = err.Error()
			g.log.Error("the watchdog cannot be disarmed: this host may be reset", "event", "guard-failed", "reason", err)
		}
		return
	}
	g.dog = dogState{}
	g.lockedDogNews("watchdog is disarmed")
}

// lockedDogNews notes at once whether the watchdog is armed, as the next daemon has to feed or disarm it
// also if this one is killed now, and tells the others, who count on it.
func (g *Guard) lockedDogNews(text string) {
	g.lockedSave()
	g.news()
	g.log.Info(text, "event", "guard-watchdog")
}

// lockedKept reports whether the promise is kept at this moment.
func (g *Guard) lockedKept(v view) bool {
	if g.lost == "" || g.timing.Known() && v.at <= v.proven+g.timing.Lease()+stopTime {
		return true
	}
	for _, o := range g.owners {
		if f := g.frozen[ownerKey{o.PID, o.Start}]; f == nil || !f.stopped {
			return false
		}
	}
	for _, f := range g.frozen {
		if !f.stopped || f.wish != WishFreeze && v.at >= f.Deadline+killTime {
			return false
		}
	}
	return true
}

// Disarm closes the watchdog before the daemon stops. It is after Run.
func (g *Guard) Disarm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.o.Dog != nil {
		g.lockedDisarm()
	}
}

// Device is a watchdog of the kernel (Documentation/watchdog/watchdog-api.rst).
type Device struct {
	Path    string
	Timeout time.Duration // whole seconds; 0 for what it has

	mu  sync.Mutex
	f   *os.File
	sys string // where sysfs is; "" for /sys
	// left: it runs already, and resets the host if nobody feeds it.
	left bool
}

// Left says that an earlier daemon has left the device running. Then it is opened also if its driver
// never stops it (nowayout), as versions did that did not look: it has to be fed.
func (d *Device) Left() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = true
}

// DisarmLeft disarms a watchdog that an earlier daemon of this boot was killed with, if it is not the device that this one has
// (keep, "" for none): nobody would feed it any more, and it would reset this host. open is for that device. It returns the
// path of it, "" if there was nothing to do. After an error it is tried again by the next call, unless a guard has begun meanwhile.
func DisarmLeft(s Store, keep string, open func(path string) Dog) (string, error) {
	saved, err := s.Load()
	if err != nil || saved == nil || !saved.Armed || saved.Device == "" || saved.Device == keep {
		return "", nil // what cannot be read is New's to say
	}
	path, d := saved.Device, open(saved.Device)
	if err := d.Feed(); err != nil {
		return path, err
	}
	if err := d.Disarm(); err != nil {
		return path, err
	}
	saved.Armed, saved.Device = false, ""
	return path, s.Save(*saved)
}

// LeftDevice is the watchdog at path, which an earlier daemon has left running, to be disarmed at once. It keeps its timeout:
// there is none that every device can do.
func LeftDevice(path string) Dog {
	return &Device{Path: path, left: true}
}

// magicClose is what says that a close is meant (watchdog-api.rst).
const (
	magicClose = "V"
)

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
// vmlockd would have this host reset. Without sysfs that is not known.
func (d *Device) endless() bool {
	var st unix.Stat_t
	if unix.Stat(d.Path, &st) != nil {
		return false // so is opening it
	}
	sys := cmp.Or(d.sys, "/sys")
	dir := fmt.Sprintf("%s/dev/char/%d:%d", sys, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if unix.Major(st.Rdev) == 10 && unix.Minor(st.Rdev) == 130 { // /dev/watchdog: WATCHDOG_MINOR of linux/miscdevice.h, the first one
		dir = sys + "/class/watchdog/watchdog0"
	}
	b, err := os.ReadFile(dir + "/nowayout")
	return err == nil && strings.TrimSpace(string(b)) == "1"
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
	d.f = f
	return nil
}

// Disarm closes the device with the letter that says that it is meant so. One whose driver does not stop it (nowayout) stays
// open, to be fed: the error says so.
func (d *Device) Disarm() error {
	return d.end(func(f *os.File) error {
		// The letter alone is taken without a word also where it changes nothing (watchdog_release in drivers/watchdog/watchdog_dev.c).
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETOPTIONS, unix.WDIOS_DISABLECARD); errors.Is(err, unix.EBUSY) {
			d.f = f
			return fmt.Errorf("%s cannot be stopped any more (nowayout): without vmlockd this host is reset after %v; load its driver with nowayout=0, or leave guard.watchdog empty", d.Path, d.Timeout)
		}
		return closeMagic(f)
	})
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
