package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/guard"
	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// totemPatience bounds how long corosync is asked for its timeouts before anything
	// is served; a daemon that has not heard them refuses until it has.
	totemPatience = 3 * time.Second
	// guardFile is in run_dir: who was stopped, and who has vanished.
	guardFile = "guard.json"
)

// guarding is the guard with what it listens to. A nil *guarding guards nothing.
type guarding struct {
	*guard.Guard
	quorum *corosync.Quorum
	group  *corosync.Group
	dog    *guard.Device   // nil if none is configured
	left   []*guard.Device // that earlier daemons have left armed, and this one does not use
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has ended; nil before it was started
	log    *slog.Logger
	grace  time.Duration
}

// admission is what the backend asks, which is made before the guard is.
type admission struct {
	off   bool
	guard atomic.Pointer[guard.Guard]
}

var errUnguarded = errors.New("the guard has not been started yet")

func (a *admission) admit(ctx context.Context) error {
	if a.off {
		return nil
	}
	g := a.guard.Load()
	if g == nil {
		return errUnguarded
	}
	return g.Admit(ctx)
}

// arm has the guard arm its watchdog before a client is told that it has a lock.
func (i *instance) arm(e locking.Event) {
	if e.Kind != locking.Granted && e.Kind != locking.TakenAgain {
		return
	}
	if g := i.admission.guard.Load(); g != nil {
		g.Granted()
	}
}

func guarded(c config.Config) bool {
	return c.Backend == config.BackendCluster && c.Guard.Mode != config.GuardOff
}

// startGuard makes the guard of this host. It is an error if it could not be safe
// with these settings. It begins to work with run.
func (i *instance) startGuard(boot string) error {
	c := i.cfg
	store := guardStore(c, boot)
	left, due, err := guard.LeftArmed(store, watchdogOf(c))
	if !guarded(c) {
		if err != nil {
			i.log.Error("what an earlier vmlockd has noted of its guard cannot be read: a watchdog that it has left armed resets this host, and processes that it has stopped stay so", "event", "guard-failed", "reason", err)
		}
		if c.Backend != config.BackendCluster {
			return nil // nothing is held of what others could count on (noOtherLocks)
		}
		i.log.Warn("guard.mode is \"off\": if this host loses the cluster its virtual machines go on writing, and without fencing other hosts get their locks")
		if !due {
			return nil // and what is still armed is fed without a guard, which would stop what runs here until it has heard the others
		}
		i.parting = true
	}
	o := guard.Options{
		Mode: guardMode(c.Guard.Mode), Lockspace: c.Cluster.Lockspace,
		Timing: timing(c.Guard),
		Clock:  guard.BootClock, Node: func() (uint32, error) { return dlm.NodeID(dlm.Host()) },
		Totem:   totem(corosync.NewCmap(corosync.Host())),
		Members: func() ([]uint32, error) { return guard.Members(c.Cluster.Lockspace) },
		// A client of its own: one asks one question at a time.
		Controld: controld.Host(), Owners: i.owners, Processes: guard.System{}, Prove: i.prove, Wish: wishes(c.Guard),
		Store: store, Left: map[string]guard.Dog{}, Name: i.others.name, Log: i.log,
	}
	g := &guarding{log: i.log, grace: o.Timing.Grace}
	for _, path := range left {
		d := guard.LeftDevice(path)
		g.left, o.Left[path] = append(g.left, d), d
	}
	if !i.parting {
		if err := checkTotem(o); err != nil {
			return err
		}
		warnIgnored(c.Guard, i.log)
		if c.Guard.Watchdog != "" {
			g.dog = &guard.Device{Path: c.Guard.Watchdog, Timeout: o.Timing.Watchdog}
			o.Dog = g.dog
		}
	}
	ctx := context.Background()
	if g.quorum, err = corosync.Track(ctx, corosync.Host(), corosync.Options{Background: true}); err == nil {
		if g.group, err = corosync.Join(ctx, corosync.Host(), "vmlockd-guard:"+c.Cluster.Lockspace, corosync.Options{Background: true}); err != nil {
			_ = g.quorum.Close(ctx)
		}
	}
	switch {
	case err != nil && i.parting:
		return fmt.Errorf("an earlier vmlockd with a guard has left a watchdog armed, or processes stopped, and what it had promised to the other hosts has to be taken back. "+
			"That needs corosync: install its client libraries (libcpg4, libquorum5, libcmap4): %w", err)
	case err != nil:
		return fmt.Errorf("guard.mode %q needs corosync: install its client libraries (libcpg4, libquorum5, libcmap4), or set guard.mode to \"off\": %w", c.Guard.Mode, err)
	}
	o.Ring, o.Group = g.quorum.Ring, g.group
	i.guard = g
	if g.Guard, err = guard.New(o); err != nil {
		return err
	}
	if !i.parting {
		i.admission.guard.Store(g.Guard)
	}
	return nil
}

func guardStore(c config.Config, boot string) guard.File {
	return guard.File{Path: filepath.Join(c.RunDir, guardFile), Boot: boot}
}

func timing(c config.Guard) guard.Timing {
	t := guard.Timing{Grace: time.Duration(c.Grace), HoldOff: time.Duration(c.HoldOff)}
	if c.Watchdog != "" {
		t.Watchdog = time.Duration(c.WatchdogTimeout)
	}
	return t
}

// checkGuard is nil if a guard with this configuration would start, as far as that can
// be said without starting one.
func checkGuard(c config.Config) error {
	if !guarded(c) {
		return nil
	}
	return checkTotem(guard.Options{
		Mode: guardMode(c.Guard.Mode), Timing: timing(c.Guard), Totem: totem(corosync.NewCmap(corosync.Host())), Controld: controld.Host(),
	})
}

// checkTotem refuses settings that corosync's are known to make unsafe. Where
// dlm_controld fences they do not matter.
func checkTotem(o guard.Options) error {
	ctx, cancel := context.WithTimeout(context.Background(), totemPatience)
	defer cancel()
	if o.Mode == guard.Fencing {
		return nil
	}
	if o.Mode == guard.Auto {
		if c, err := o.Controld.Config(ctx); err != nil || c.EnableFencing {
			return nil
		}
	}
	if c, err := o.Totem(ctx); err == nil {
		return guard.CheckTotem(o.Timing, c)
	}
	return nil
}

// run begins to guard, once it is known who has locks.
func (g *guarding) run() {
	if g == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan struct{})
	go func() {
		defer close(g.done)
		if err := g.Run(ctx); err != nil {
			g.log.Debug("could not leave the group of guards in good order", "reason", err)
		}
	}()
}

// state is for people. guarded: something keeps a host that is cut off from writing. stays: what else cannot be disarmed.
func (g *guarding) state(stays []string) (out *control.GuardState, guarded bool) {
	if g == nil {
		return &control.GuardState{WatchdogStays: stays, Mode: config.GuardOff, Stopped: []control.StoppedVM{}, NotStopped: []control.LooseVM{}, Vanished: []control.VanishedNode{}}, false
	}
	s := g.Status()
	out = &control.GuardState{
		Mode: s.Mode.String(), Promise: s.Promise, Lost: s.Lost, Unsafe: s.Unsafe, Refuses: s.Refuses, Watchdog: s.Watchdog, WatchdogStays: s.WatchdogStays,
		Grace: s.Timing.Grace.Seconds(), HoldOff: s.Timing.HoldOff.Seconds(), Stopped: []control.StoppedVM{}, NotStopped: []control.LooseVM{}, Vanished: []control.VanishedNode{},
	}
	if s.Timing.Known() {
		out.Least = s.Timing.LeastHoldOff().Seconds()
	}
	now := guard.BootClock()
	for _, f := range s.Stopped {
		out.Stopped = append(out.Stopped, control.StoppedVM{VM: f.Name, UUID: f.UUID, PID: f.PID, Left: max(f.Deadline-now, 0).Seconds(), Stays: f.Stays})
	}
	for _, o := range s.NotStopped {
		out.NotStopped = append(out.NotStopped, control.LooseVM{VM: o.Name, UUID: o.UUID, PID: o.PID})
	}
	for _, v := range s.Vanished {
		out.Vanished = append(out.Vanished, control.VanishedNode{NodeID: v.Node, Left: v.Left.Seconds(), Forever: v.Forever, Promised: v.Promised, Seen: v.Observed})
	}
	return out, s.Unsafe == "" && s.Mode != guard.Auto
}

// ConfirmDead is for operators, who are told apart why it was not done.
func (g *guarding) ConfirmDead(node uint32) error {
	err := g.Guard.ConfirmDead(node)
	if errors.Is(err, guard.ErrMember) {
		return &control.Error{Code: control.CodeNodeMember, Message: err.Error()}
	}
	return err
}

// settle is for the end of the daemon, after the last request: processes that are
// stopped go on or are killed.
func (g *guarding) settle() {
	if g == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.grace+stopTimeout)
	defer cancel()
	if err := g.Settle(ctx); err != nil {
		g.log.Error("stopping while processes are stopped as this host has lost the cluster", "event", "guard-failed", "reason", err)
	}
}

// leave says that this host holds nothing any more.
func (g *guarding) leave() {
	if g != nil {
		g.Leave()
	}
}

// withdraw is for the end of the daemon, or of the guard (doing), while processes own locks: the others are told that
// nothing guards these any more, and until they have heard it the guard goes on. It is
// false if that is not certain.
func (g *guarding) withdraw(doing string) (heard bool) {
	if g == nil || g.done == nil { // nothing was promised
		return true
	}
	// The guard has a bound of its own, and this is for one that hangs.
	ctx, cancel := context.WithTimeout(context.Background(), g.Status().Timing.HoldOff)
	defer cancel()
	err := g.Withdraw(ctx)
	if err != nil {
		text := doing + ", and other hosts may take the disks of virtual machines that run here: start vmlockd again at once with a guard, or end these virtual machines (virsh destroy)"
		if g.dog != nil || len(g.left) > 0 {
			text += "; the watchdog is left armed, and resets this host otherwise"
		}
		g.log.Error(text, "event", "guard-failed", "reason", err)
	}
	return err == nil
}

// close ends the guard; what is stopped stays so. With disarm the watchdog is
// closed such that it resets nothing; without, it runs down until the next guard has it.
func (g *guarding) close(ctx context.Context, disarm bool) error {
	if g == nil {
		return nil
	}
	var err error
	if g.done != nil {
		g.cancel()
		select {
		case <-g.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	} else {
		err = g.group.Close(ctx)
	}
	if disarm && g.Guard != nil {
		g.Disarm()
	}
	// What is not disarmed now runs down. The next guard has to open it, which it cannot while it is open here.
	if g.dog != nil {
		err = errors.Join(err, g.dog.Leave())
	}
	for _, d := range g.left {
		err = errors.Join(err, d.Leave())
	}
	return errors.Join(err, g.quorum.Close(ctx))
}

// owners are the processes with locks on what other hosts can use, also with those
// that could not be taken back yet.
func (i *instance) owners() []guard.Owner {
	locks := i.table.Load()
	if locks == nil {
		return nil
	}
	held := locks.HoldingProcesses()
	list := make([]guard.Owner, len(held))
	for n, h := range held {
		list[n] = guard.Owner{PID: h.Owner.PID, Start: h.Start, Name: h.Owner.Name, UUID: locking.FormatUUID(h.Owner.UUID)}
	}
	if i.doubt.unknown.Load() {
		// There may be more, whom nobody can stop: this host must not promise that.
		list = append(list, guard.Owner{Name: "whoever the damaged journal may have told of"})
	}
	return list
}

func (i *instance) prove(ctx context.Context, o guard.Owner) error {
	locks := i.table.Load()
	if locks == nil {
		return errUnguarded
	}
	return locks.Prove(ctx, o.PID, o.Start)
}

func guardMode(mode string) guard.Mode {
	switch mode {
	case config.GuardFencing:
		return guard.Fencing
	case config.GuardFreeze:
		return guard.Freeze
	}
	return guard.Auto
}

// warnIgnored says who is not stopped, long before that destroys anything.
func warnIgnored(c config.Guard, log *slog.Logger) {
	if list := c.Ignored(); len(list) > 0 {
		log.Warn("on_loss is \"ignore\": if this host loses the cluster and nothing fences it, these virtual machines go on writing, and their disks may be destroyed; while one of them runs this host gives no promise",
			"vms", strings.Join(list, ", "))
	}
}

// wishes finds what is wanted for a virtual machine.
func wishes(c config.Guard) func(guard.Owner) guard.Wish {
	wish := map[string]guard.Wish{config.OnLossKill: guard.WishKill, config.OnLossFreeze: guard.WishFreeze, config.OnLossIgnore: guard.WishIgnore}
	names, uuids := map[string]guard.Wish{}, map[string]guard.Wish{}
	for _, vm := range c.VM {
		if vm.UUID != "" {
			uuids[strings.ToLower(vm.UUID)] = wish[vm.OnLoss]
		} else {
			names[vm.Name] = wish[vm.OnLoss]
		}
	}
	return func(o guard.Owner) guard.Wish {
		if w, ok := uuids[o.UUID]; ok {
			return w
		}
		if w, ok := names[o.Name]; ok {
			return w
		}
		return wish[c.OnLoss]
	}
}
