package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/guard"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/testenv"
	"github.com/vmlockd/vmlockd/lab"
)

func TestWishes(t *testing.T) {
	const uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
	wish := wishes(config.Guard{OnLoss: config.OnLossFreeze, VM: []config.GuardVM{
		{Name: "web", OnLoss: config.OnLossIgnore}, {UUID: "C7A5FDBD-EDAF-9455-926A-D65C16DB1809", OnLoss: config.OnLossKill},
	}})
	for _, tc := range []struct {
		o    guard.Owner
		want guard.Wish
	}{
		{guard.Owner{Name: "web"}, guard.WishIgnore},
		{guard.Owner{Name: "web", UUID: uuid}, guard.WishKill},
		{guard.Owner{Name: "other", UUID: "00000000-0000-0000-0000-000000000000"}, guard.WishFreeze},
	} {
		if got := wish(tc.o); got != tc.want {
			t.Errorf("%+v: %v, and not %v", tc.o, got, tc.want)
		}
	}
}

// Whoever is not to be stopped is warned of at the start, and nobody else is.
func TestIgnoredIsLoud(t *testing.T) {
	for on, want := range map[string]bool{config.OnLossIgnore: true, config.OnLossFreeze: false} {
		log := &testenv.Log{}
		warnIgnored(config.Guard{OnLoss: config.OnLossKill, VM: []config.GuardVM{{Name: "web", OnLoss: on}}}, slog.New(slog.NewTextHandler(log, nil)))
		if text := log.String(); strings.Contains(text, "level=WARN") != want || strings.Contains(text, "web") != want {
			t.Errorf("on_loss is %q: %q", on, text)
		}
	}
}

// countingDog notes how often it was fed.
type countingDog struct{ fed int }

func (d *countingDog) Feed() error   { d.fed++; return nil }
func (d *countingDog) Disarm() error { return nil }

// The watchdog is armed by the news of a grant, which come before its client is told, and by no others.
func TestGrantArms(t *testing.T) {
	i, d := &instance{}, &countingDog{}
	i.arm(locking.Event{Kind: locking.Granted}) // there is no guard
	g, err := guard.New(guard.Options{
		Mode: guard.Freeze, Clock: func() time.Duration { return time.Hour }, Store: guard.File{Path: filepath.Join(t.TempDir(), "guard.json")}, Dog: d,
		Node: func() (uint32, error) { return 1, nil }, Members: func() ([]uint32, error) { return []uint32{1}, nil },
		Ring: func() (corosync.Ring, error) { return corosync.Ring{Quorate: true}, nil }, Owners: func() []guard.Owner { return []guard.Owner{{PID: 7, Start: 1}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	i.admission.guard.Store(g)
	i.arm(locking.Event{Kind: locking.Refused})
	if d.fed != 0 {
		t.Error("it is armed for a refusal")
	}
	i.arm(locking.Event{Kind: locking.Granted})
	if d.fed != 1 {
		t.Errorf("for a grant it is fed %d times", d.fed)
	}
}

// Before there is a guard nothing is admitted, unless there is to be none.
func TestAdmission(t *testing.T) {
	a := &admission{}
	if err := a.admit(context.Background()); !errors.Is(err, errUnguarded) {
		t.Errorf("got %v", err)
	}
	a.off = true
	if err := a.admit(context.Background()); err != nil {
		t.Error(err)
	}
	c := config.Default()
	if guarded(c) {
		t.Error("local locks are guarded")
	}
	c.Backend = config.BackendCluster
	if !guarded(c) {
		t.Error("a cluster is not guarded by default")
	}
	c.Guard.Mode = config.GuardOff
	if guarded(c) {
		t.Error("off is not off")
	}
	var none *guarding
	if out, guarded := none.state([]string{"it stays"}); out.Mode != config.GuardOff || guarded || len(out.WatchdogStays) != 1 {
		t.Errorf("without a guard people are told %+v, guarded: %v", out, guarded)
	}
}

// While the journal may have lost owners, there is one that nobody can stop, so that no
// promise is given.
func TestOwnersInDoubt(t *testing.T) {
	i := &instance{doubt: &doubter{}}
	if list := i.owners(); len(list) != 0 {
		t.Errorf("before there is a table: %v", list)
	}
	i.table.Store(locking.New(locking.Options{Backend: locktest.NewBackend(t)}))
	if list := i.owners(); len(list) != 0 {
		t.Errorf("nobody holds anything: %v", list)
	}
	i.doubt.suspect("torn")
	if list := i.owners(); len(list) != 1 || list[0].Start != 0 {
		t.Errorf("in doubt: %v", list)
	}
}

// TestWatchdogLeftOut: whoever starts with a configuration without a guard closes the watchdog that an earlier vmlockd was
// killed with. It is a file here, which takes the letter that disarms, and no timeout: what is only to be disarmed needs none.
func TestWatchdogLeftOut(t *testing.T) {
	c := inProcess(t)
	boot, err := journal.BootID()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	device := filepath.Join(t.TempDir(), "watchdog")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (guard.File{Path: filepath.Join(c.RunDir, guardFile), Boot: boot}).Save(guard.Saved{Armed: true, Device: device}); err != nil {
		t.Fatal(err)
	}
	log := &testenv.Log{}
	i, err := start(c, "test", slog.New(slog.NewTextHandler(log, nil)), nil, &given{})
	if err != nil {
		t.Fatal(err)
	}
	defer i.stop()
	if b, err := os.ReadFile(device); err != nil || string(b) != "\x00V" {
		t.Errorf("it was closed with %q, %v", b, err)
	}
	if text := log.String(); !strings.Contains(text, device+", which an earlier vmlockd has left armed") || !strings.Contains(text, "is disarmed") {
		t.Errorf("the log does not say so:\n%s", text)
	}
	if saved, err := guardStore(c, boot).Load(); err != nil || saved.Armed {
		t.Errorf("noted after that: %+v, %v", saved, err)
	}
}

// TestWatchdogAndAStartThatFails: until the guard begins the watchdog that an earlier vmlockd was killed with stays as it is, as the other
// hosts count on it. So it does where there is to be no guard any more: what that one had promised is taken back first.
func TestWatchdogAndAStartThatFails(t *testing.T) {
	for _, mode := range []string{config.GuardAuto, config.GuardOff} {
		c := inProcess(t)
		c.Backend, c.Guard.Mode = config.BackendCluster, mode
		if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
			t.Fatal(err)
		}
		device := filepath.Join(t.TempDir(), "watchdog")
		if err := os.WriteFile(device, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		const boot = "this one"
		if err := guardStore(c, boot).Save(guard.Saved{Armed: true, Device: device}); err != nil {
			t.Fatal(err)
		}
		i := &instance{log: quiet(), cfg: c}
		if err := i.startGuard(boot); err != nil {
			t.Logf("there is no corosync here: %v", err) // that is how a start fails
			if off := mode == config.GuardOff; strings.Contains(err.Error(), "has to be taken back") != off {
				t.Errorf("mode %s: %v", mode, err)
			}
		}
		if off := mode == config.GuardOff; i.parting != off {
			t.Errorf("mode %s: there is something to be taken back: %v", mode, i.parting)
		}
		i.within("the guard", func(ctx context.Context) error { return i.guard.close(ctx, false) })
		if b, err := os.ReadFile(device); err != nil || len(b) != 0 {
			t.Errorf("mode %s: before the guard has begun: %q, %v", mode, b, err)
		}
	}
}

// The defaults are long enough for corosync's own settings with up to 14 hosts, and for
// those of the lab and the demo: token is 3 s or 5 s, with 0.65 s more for each host after
// the second, and consensus is 1.2 times that (corosync.conf(5)).
func TestDefaultsAreLongEnough(t *testing.T) {
	for _, tc := range []struct {
		token  time.Duration
		hosts  int
		enough bool
	}{
		{3 * time.Second, 2, true}, {3 * time.Second, 14, true}, {3 * time.Second, 15, false}, // as docs/guard.md says
		{5 * time.Second, lab.MaxNodes, true},
	} {
		token := tc.token + time.Duration(tc.hosts-2)*650*time.Millisecond
		err := guard.CheckTotem(timing(config.Default().Guard), guard.Totem{Token: token, Consensus: token * 12 / 10})
		if (err == nil) != tc.enough {
			t.Errorf("token %v, %d hosts: %v", token, tc.hosts, err)
		}
	}
}

// What is said of quorum follows from corosync's configuration (votequorum(5)).
func TestTotem(t *testing.T) {
	provider := map[string]corosync.Value{"quorum.provider": corosync.TextValue("corosync_votequorum")}
	for name, tc := range map[string]struct {
		keys             map[string]corosync.Value
		majority, static bool
	}{
		"no provider": {nil, false, false},
		"votes":       {provider, true, true},
		"two nodes":   {map[string]corosync.Value{"quorum.two_node": corosync.UintValue(1)}, false, false},
		"a device":    {map[string]corosync.Value{"quorum.device.model": corosync.TextValue("net")}, true, false},
		// After a reload corosync may leave the device out of account, and not two_node.
		"both":                {map[string]corosync.Value{"quorum.two_node": corosync.UintValue(1), "quorum.device.model": corosync.TextValue("net")}, false, false},
		"a device, ffsplit":   {map[string]corosync.Value{"quorum.device.model": corosync.TextValue("net"), "quorum.device.net.algorithm": corosync.TextValue("ffsplit")}, true, false},
		"a device, lms":       {map[string]corosync.Value{"quorum.device.model": corosync.TextValue("net"), "quorum.device.net.algorithm": corosync.TextValue("lms")}, false, false},
		"another device":      {map[string]corosync.Value{"quorum.device.model": corosync.TextValue("disk")}, false, false},
		"a master wins":       {map[string]corosync.Value{"quorum.device.model": corosync.TextValue("net"), "runtime.votequorum.qdevice_master_wins": corosync.UintValue(1)}, false, false},
		"what is left has it": {map[string]corosync.Value{"quorum.last_man_standing": corosync.UintValue(1)}, false, false},
		"who remains has it":  {map[string]corosync.Value{"quorum.allow_downscale": corosync.UintValue(1)}, false, false},
		// Two nodes: with one expected vote each has quorum alone.
		"too few are expected": {map[string]corosync.Value{"quorum.expected_votes": corosync.UintValue(1)}, false, false},
		"as many as there are": {map[string]corosync.Value{"quorum.expected_votes": corosync.UintValue(2)}, true, true},
		"one node has three":   {map[string]corosync.Value{"quorum.expected_votes": corosync.UintValue(2), "nodelist.node.0.quorum_votes": corosync.UintValue(3)}, false, false},
		"and is expected to":   {map[string]corosync.Value{"quorum.expected_votes": corosync.UintValue(4), "nodelist.node.0.quorum_votes": corosync.UintValue(3)}, true, true},
		"too few and a device": {map[string]corosync.Value{"quorum.expected_votes": corosync.UintValue(1), "quorum.device.model": corosync.TextValue("net"), "quorum.device.votes": corosync.UintValue(1)}, true, false},
		"a device that has much to say": {map[string]corosync.Value{"quorum.expected_votes": corosync.UintValue(1), "nodelist.node.0.quorum_votes": corosync.UintValue(3),
			"quorum.device.model": corosync.TextValue("net"), "quorum.device.votes": corosync.UintValue(1)}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := corosynctest.NewCluster(2).Node(1)
			if tc.keys != nil {
				n.Set("quorum.provider", provider["quorum.provider"])
			}
			for key, v := range tc.keys {
				n.Set(key, v)
			}
			got, err := totem(corosync.NewCmap(n.NewProcess()))(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.Majority != tc.majority || got.Static != tc.static || len(got.Nodes) != 2 || got.Token != time.Second {
				t.Errorf("%+v", got)
			}
			if device := got.Majority && !got.Static; (got.Device > 0) != device {
				t.Errorf("the vote of a device may count twice for %v", got.Device)
			}
		})
	}
}

// corosync-qdevice asks for an echo every 0.8 of its timeout, and not more often than every second.
func TestDeviceOverlap(t *testing.T) {
	for timeout, want := range map[uint64]time.Duration{0: 16 * time.Second, 10_000: 16 * time.Second, 20_000: 32 * time.Second, 500: 2 * time.Second} {
		n := corosynctest.NewCluster(2).Node(1)
		n.Set("quorum.provider", corosync.TextValue("corosync_votequorum"))
		n.Set("quorum.device.model", corosync.TextValue("net"))
		if timeout > 0 {
			n.Set("quorum.device.timeout", corosync.UintValue(timeout))
		}
		got, err := totem(corosync.NewCmap(n.NewProcess()))(t.Context())
		if err != nil || got.Device != want {
			t.Errorf("timeout %d ms: %v, %v; want %v", timeout, got.Device, err, want)
		}
	}
	// The default of hold_off is enough for the hosts that docs/guard.md names.
	for hosts, enough := range map[int]bool{2: true, 5: true, 6: false} {
		token := 3*time.Second + time.Duration(max(hosts-2, 0))*650*time.Millisecond
		err := guard.CheckTotem(timing(config.Default().Guard), guard.Totem{Token: token, Consensus: token * 12 / 10, Device: deviceOverlap(defaultDeviceTimeout)})
		if (err == nil) != enough {
			t.Errorf("%d hosts: %v", hosts, err)
		}
	}
}

// fences is a dlm_controld of which only that is asked.
type fences struct {
	guard.Controld
	on  bool
	err error
}

func (f fences) Config(context.Context) (controld.Config, error) {
	return controld.Config{EnableFencing: f.on}, f.err
}

// A hold-off that corosync's timeouts make too short is refused at the start, where it would count.
func TestTooShortIsRefused(t *testing.T) {
	short := guard.Timing{Grace: 10 * time.Second, HoldOff: 20 * time.Second}
	known := func(context.Context) (guard.Totem, error) {
		return guard.Totem{Token: 5 * time.Second, Consensus: 6 * time.Second}, nil
	}
	unknown := func(context.Context) (guard.Totem, error) { return guard.Totem{}, errors.New("corosync does not run") }
	for name, c := range map[string]struct {
		o    guard.Options
		want bool
	}{
		"freeze":                            {guard.Options{Mode: guard.Freeze, Totem: known}, true},
		"auto, and nobody fences":           {guard.Options{Mode: guard.Auto, Totem: known, Controld: fences{}}, true},
		"auto, and dlm_controld fences":     {guard.Options{Mode: guard.Auto, Totem: known, Controld: fences{on: true}}, false},
		"auto, and dlm_controld is not yet": {guard.Options{Mode: guard.Auto, Totem: known, Controld: fences{err: controld.ErrNotRunning}}, false},
		"fencing":                           {guard.Options{Mode: guard.Fencing, Totem: known}, false},
		"corosync is not yet":               {guard.Options{Mode: guard.Freeze, Totem: unknown}, false},
	} {
		c.o.Timing = short
		err := checkTotem(c.o)
		if got := err != nil; got != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "set guard.hold_off to at least that on all hosts") {
			t.Errorf("%s: it does not say what to do: %v", name, err)
		}
		c.o.Timing.HoldOff = time.Minute
		if err := checkTotem(c.o); err != nil {
			t.Errorf("%s, long enough: %v", name, err)
		}
	}
}
