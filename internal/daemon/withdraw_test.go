package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/guard"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// silent is a corosync group that delivers nothing, and a dlm_controld that says only
// whether it fences.
type silent struct {
	events chan corosync.Event
	fences bool
}

func (s silent) Events() <-chan corosync.Event { return s.events }

func (s silent) Send(context.Context, []byte) error { return nil }

func (s silent) Close(context.Context) error { return nil }

func (s silent) Status(context.Context) (controld.Status, error) {
	return controld.Status{}, controld.ErrNoAnswer
}

func (s silent) Known(context.Context, string) error { return nil }

func (s silent) Config(context.Context) (controld.Config, error) {
	return controld.Config{EnableFencing: s.fences}, nil
}

// unheard is what a guard has whom nobody hears, and who has an owner that nobody can stop. Time is that of the bubble.
func unheard(s silent, dir string) guard.Options {
	begun := time.Now()
	ring := corosync.Ring{ID: corosync.RingID{Node: 1, Seq: 1}, Members: []uint32{1, 2, 3}, Quorate: true}
	return guard.Options{
		Lockspace: "vms", Timing: guard.Timing{Grace: 10 * time.Second, HoldOff: time.Minute}, Clock: func() time.Duration { return time.Since(begun) },
		Node: func() (uint32, error) { return 1, nil }, Group: s, Ring: func() (corosync.Ring, error) { return ring, nil },
		Totem: func(context.Context) (guard.Totem, error) {
			return guard.Totem{Token: time.Second, Consensus: 2 * time.Second, Majority: true, Nodes: ring.Members}, nil
		},
		Members: func() ([]uint32, error) { return ring.Members, nil }, Controld: s,
		Owners: func() []guard.Owner { return []guard.Owner{{Name: "web"}} }, Processes: guard.System{},
		Store: guard.File{Path: filepath.Join(dir, guardFile), Boot: "b"},
	}
}

// A promise that nobody may have heard withdrawn is said to stand, and what is to be done; and
// the end of the daemon does not wait for ever. Nothing of that is so where others fence.
func TestWithdraw(t *testing.T) {
	for name, fences := range map[string]bool{"nobody hears it": false, "others fence": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fakeclock.Test(t, func(t *testing.T) {
				o := unheard(silent{make(chan corosync.Event), fences}, dir)
				var log testenv.Log
				g := &guarding{log: slog.New(slog.NewTextHandler(&log, nil)), dog: &guard.Device{}}
				if !g.withdraw("stopping") {
					t.Error("nothing was promised")
				}
				var err error
				if g.Guard, err = guard.New(o); err != nil {
					t.Fatal(err)
				}
				g.run()
				for g.Status().Mode == guard.Auto {
					fakeclock.Wait()
				}
				asked := time.Now()
				heard := g.withdraw("stopping")
				g.cancel()
				<-g.done
				if took := time.Since(asked); heard != fences || took > time.Minute || fences && took > time.Second {
					t.Errorf("heard: %v, after %v", heard, took)
				}
				if text := log.String(); strings.Contains(text, "start vmlockd again at once") == fences || strings.Contains(text, "left armed") == fences {
					t.Errorf("the log: %s", text)
				}
			})
		})
	}
}

// parting is a start without a guard on a host where an earlier vmlockd has left a watchdog armed: what part needs of it. The guard runs.
func parting(t *testing.T, o guard.Options, dir string, log *slog.Logger) (i *instance, device string) {
	t.Helper()
	device = filepath.Join(dir, "watchdog")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.Store.Save(guard.Saved{Armed: true, Device: device}); err != nil {
		t.Fatal(err)
	}
	left := guard.LeftDevice(device)
	o.Left = map[string]guard.Dog{device: left}
	g, err := guard.New(o)
	if err != nil {
		t.Fatal(err)
	}
	q, err := corosync.Track(t.Context(), corosynctest.NewCluster(1).Node(1).NewProcess(), corosync.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i = &instance{log: log, parting: true}
	i.guard = &guarding{Guard: g, log: log, left: []*guard.Device{left}, quorum: q}
	i.guard.run()
	return i, device
}

// vmlockd was killed with its watchdog armed, and is started with guard.mode "off": the watchdog is disarmed only when nobody counts on it any more.
func TestPart(t *testing.T) {
	for name, fences := range map[string]bool{"nobody hears it": false, "others fence": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			systemd := newManager(t)
			fakeclock.Test(t, func(t *testing.T) {
				var log testenv.Log
				told, again := make(chan struct{}), make(chan os.Signal, 1)
				again <- syscall.SIGTERM // the first one, which is not for part, or this test ends here
				if !fences {
					time.AfterFunc(time.Second, func() {
						<-again
						close(told)
					})
				}
				o := unheard(silent{make(chan corosync.Event), fences}, dir)
				i, device := parting(t, o, dir, slog.New(slog.NewTextHandler(&log, nil)))
				i.given = &given{told: told, toldAgain: again}
				for i.guard.Status().Mode == guard.Auto {
					fakeclock.Wait()
				}
				begun := time.Now()
				i.part()
				// systemd has had a sign of life all the time, and was asked for more of it.
				const want = "EXTEND_TIMEOUT_USEC=30000000\nWATCHDOG=1"
				if got := systemd.all(); len(got) != 1+int(time.Since(begun)/beatEvery) || slices.ContainsFunc(got, func(s string) bool { return s != want }) {
					t.Errorf("systemd is told in %v: %q", time.Since(begun), got)
				}
				if !fences && time.Since(begun) < 2*beatEvery {
					t.Errorf("it took %v, which is too short to see that", time.Since(begun))
				}
				if i.guard != nil || i.parting == fences {
					t.Errorf("there is a guard: %v; to be taken back: %v", i.guard != nil, i.parting)
				}
				b, err := os.ReadFile(device)
				if disarmed := strings.HasSuffix(string(b), "V"); err != nil || disarmed != fences || len(b) == 0 {
					t.Errorf("it was fed and closed with %q, %v", b, err)
				}
				if saved, err := o.Store.Load(); err != nil || (len(saved.Left) == 0) != fences {
					t.Errorf("noted after that: %+v, %v", saved, err)
				}
				if n := strings.Count(log.String(), "told to stop while"); (n == 1) == fences {
					t.Errorf("a signal to stop is answered %d times: %s", n, log.String())
				}
				if text := log.String(); strings.Contains(text, "left armed, and resets this host") == fences {
					t.Errorf("the log: %s", text)
				}
			})
		})
	}
}

// endless is a watchdog that cannot be stopped, or not yet.
type endless struct {
	fed, disarmed, left int
	err                 error
}

func (e *endless) Feed() error   { e.fed++; return nil }
func (e *endless) Disarm() error { e.disarmed++; return e.err }
func (e *endless) Leave() error  { e.left++; return nil }

// A watchdog that was left armed and that cannot be disarmed is fed while vmlockd runs, on a host without a guard too. That is said when it is
// found, and when vmlockd is stopped; and the next start knows of it.
func TestLeftover(t *testing.T) {
	for name, tc := range map[string]struct {
		err   error
		stays bool
		last  bool
	}{
		"it can never be":              {fmt.Errorf("/dev/watchdog %w", guard.ErrStays), true, true},
		"and vmlockd is restarted":     {fmt.Errorf("/dev/watchdog %w", guard.ErrStays), true, false},
		"another program has it (sbd)": {errors.New("busy"), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fakeclock.Test(t, func(t *testing.T) {
				store := guard.File{Path: filepath.Join(dir, guardFile), Boot: "b"}
				if err := store.Save(guard.Saved{Armed: true, Device: "/dev/watchdog"}); err != nil {
					t.Fatal(err)
				}
				var log testenv.Log
				d := &endless{err: tc.err}
				l := endLeft(store, slog.New(slog.NewTextHandler(&log, nil)), func(string) watchdog { return d })
				if l == nil {
					t.Fatal("nothing is left")
				}
				time.Sleep(10 * time.Second) // by the bubble's clock: it would reset the host
				fakeclock.Wait()
				l.mu.Lock()
				fed := d.fed
				l.mu.Unlock()
				if fed < 10 {
					t.Errorf("fed %d times in 10 s", fed)
				}
				if got := l.stays(); (len(got) == 1) != tc.stays {
					t.Errorf("people are told %q", got)
				}
				if n := strings.Count(log.String(), "cannot be disarmed"); n != 1 {
					t.Errorf("said %d times: %s", n, log.String())
				}
				if !tc.stays { // at last it can be
					l.mu.Lock()
					d.err = nil
					l.mu.Unlock()
					time.Sleep(2 * feedEvery) // by the bubble's clock: until it is tried again
				}
				l.close(tc.last)
				if got := strings.Contains(log.String(), "or this host is reset"); got != (tc.stays && tc.last) || (d.left == 1) != tc.stays {
					t.Errorf("the end is said: %v, left %d times: %s", got, d.left, log.String())
				}
				if paths, _, err := guard.LeftArmed(store, ""); err != nil || (len(paths) == 1) != tc.stays {
					t.Errorf("the next start knows of %v, %v", paths, err)
				}
			})
		})
	}
	var none *leftover
	none.close(true)
	if none.stays() != nil {
		t.Error("none stays")
	}
}
