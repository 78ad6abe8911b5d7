// Package conformance says what a DLM does, as tests: run against the simulation they show that it is right, and run
// against the real kernel they show that what package dlm and the simulation take for granted is so.
//
// The suite drives any number of nodes from one process through dlm.Kernel. For nodes of a real cluster these are
// dlm.Host on a node itself, or package remote from elsewhere. Its own tests run it
//
//	go test ./dlm/dlmtest/conformance                                # on the simulation
//	VMLOCKD_LAB=1 go test -run TestLab ./dlm/dlmtest/conformance     # on three nodes of a lab, about a minute
//	CGO_ENABLED=0 go test -c -o conformance.test ./dlm/dlmtest/conformance
//	VMLOCKD_DLM_REAL=1 ./conformance.test -test.run TestHost         # as root on a node of a cluster, on its own kernel
//
// The benchmarks use this machine's kernel with VMLOCKD_DLM_REAL=1, and the simulation without.
package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

// Site is where the suite is run.
type Site struct {
	// Kernels are the nodes, at least one. Tests that need two are skipped with one.
	Kernels []dlm.Kernel
	// Suspend stops a lockspace on all nodes, and Resume lets it go on. Without them (nil) the tests that need them are skipped.
	Suspend, Resume func(t testing.TB, lockspace string)
	// PowerOff takes the power from the last node and returns when the others have recovered. Nothing runs on that node
	// afterwards; the test that does it is the last one.
	PowerOff func(t testing.TB)
	// Patience is how long anything may take that must happen. 0 is a minute.
	Patience time.Duration
	// Storm is how long the random part lasts, unless it needs more for everything to happen. 0 is 3 s.
	Storm time.Duration
	// Prefix begins the names of the lockspaces the suite makes. "" is "cf".
	Prefix string
}

// env is what the tests of one run share: a lockspace of which all nodes are members.
type env struct {
	Site
	lockspace string
}

// Run runs the suite. It leaves no lockspace behind.
func Run(t *testing.T, site Site) {
	if site.Patience == 0 {
		site.Patience = time.Minute
	}
	if site.Storm == 0 {
		site.Storm = 3 * time.Second
	}
	if site.Prefix == "" {
		site.Prefix = "cf"
	}
	e := &env{Site: site, lockspace: site.Prefix + rand.Text()[:8]}
	for i, k := range site.Kernels {
		ls, err := dlm.Create(e.ctx(t), k, e.lockspace, dlm.Options{})
		if err != nil {
			t.Fatalf("node %d: %v", i+1, err)
		}
		must(t, ls.Close(e.ctx(t)))
	}
	lost := false
	t.Cleanup(func() {
		for i, k := range site.Kernels {
			if lost && i == len(site.Kernels)-1 {
				continue
			}
			if err := dlm.Remove(e.ctx(t), k, e.lockspace, true); err != nil {
				t.Errorf("node %d: %v", i+1, err)
			}
		}
	})
	for _, c := range []struct {
		name  string
		nodes int
		f     func(*testing.T, *env)
	}{
		{"Modes", 1, testModes},
		{"Order", 1, testOrder},
		{"NoQueue", 1, testNoQueue},
		{"ContextEnds", 1, testContextEnds},
		{"Convert", 1, testConvert},
		{"ConvertCancel", 1, testConvertCancel},
		{"Deadlock", 1, testDeadlock},
		{"UnlockWhileConverting", 1, testUnlockWhileConverting},
		{"Blocking", 1, testBlocking},
		{"NullIsNeverQueued", 1, testNullIsNeverQueued},
		{"LVB", 1, testLVB},
		{"LVBOfTheDead", 1, testLVBOfTheDead},
		{"LVBEndsWithTheLastLock", 1, testLVBEndsWithTheLastLock},
		{"UnlockLVB", 1, testUnlockLVB},
		{"AdoptedWritesLVB", 1, testAdoptedWritesLVB},
		{"DeathReleases", 1, testDeathReleases},
		{"Orphans", 1, testOrphans},
		{"OrphansOldestFirst", 1, testOrphansOldestFirst},
		{"OrphanOfConversion", 1, testOrphanOfConversion},
		{"OrphanKeepsPersistence", 1, testOrphanKeepsPersistence},
		{"ConvertKeepsPersistence", 1, testConvertKeepsPersistence},
		{"Handover", 1, testHandover},
		{"HandoverAndDeath", 1, testHandoverAndDeath},
		{"HandoverRefused", 1, testHandoverRefused},
		{"Purge", 1, testPurge},
		{"RawResults", 1, testRawResults},
		{"RawRefusals", 1, testRawRefusals},
		{"RawReleaseWritesLVB", 1, testRawReleaseWritesLVB},
		{"NumbersAreReused", 1, testNumbersAreReused},
		{"Membership", 1, testMembership},
		{"LeaveWithLocks", 1, testLeaveWithLocks},
		{"LeaveAsMaster", 2, testLeaveAsMaster},
		{"TwoNodesRace", 2, testTwoNodesRace},
		{"PurgeElsewhere", 2, testPurgeElsewhere},
		{"Storm", 1, testStorm},
		{"Stopped", 1, testStopped},
		{"StoppedClose", 1, testStoppedClose},
		{"OrphanOfRequest", 1, testOrphanOfRequest},
		{"QueuedPersistent", 1, testQueuedPersistent},
		{"NodeLoss", 2, testNodeLoss},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(site.Kernels) < c.nodes {
				t.Skipf("%d nodes are needed, there is %d", c.nodes, len(site.Kernels))
			}
			if c.name == "NodeLoss" {
				if site.PowerOff == nil {
					t.Skip("the site cannot take power from a node")
				}
				lost = true
			}
			c.f(t, e)
		})
	}
}

// ctx ends when the site's patience does.
func (e *env) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), e.Patience)
	t.Cleanup(cancel)
	return ctx
}

// name is a resource's name no other test uses.
func (e *env) name(t testing.TB) string {
	return fmt.Sprintf("%.40s %s", t.Name(), rand.Text()[:8])
}

// process is a program on a node that has the lockspace open.
type process struct {
	*dlm.Lockspace
	e      *env
	k      *killable
	killed bool
}

// process starts a process on a node; nodes that do not exist are others again, so that a test of two processes has them
// on two nodes where there are two.
func (e *env) process(t testing.TB, node int) *process {
	t.Helper()
	k := &killable{Kernel: e.Kernels[(node-1)%len(e.Kernels)]}
	ls, err := dlm.Open(e.ctx(t), k, e.lockspace, dlm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Lockspace: ls, e: e, k: k}
	t.Cleanup(func() { p.end(t) })
	return p
}

// end closes what the process has, in good order.
func (p *process) end(t testing.TB) {
	if err := p.Close(p.e.ctx(t)); err != nil && !p.killed {
		t.Errorf("closing: %v", err)
	}
	if s := p.Stats(); s.Malformed > 0 {
		t.Errorf("%d results made no sense", s.Malformed)
	}
}

// kill ends the process abruptly: to the kernel that is the closing of its device.
func (p *process) kill(t testing.TB) {
	t.Helper()
	p.killed = true
	p.k.kill()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = p.Close(ctx) // only our half
}

func (p *process) lock(t testing.TB, name string, mode dlm.Mode, opts dlm.LockOptions) *dlm.Lock {
	t.Helper()
	l, err := p.Lock(p.e.ctx(t), name, mode, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// pending is a Lock or Convert on a goroutine of its own.
type pending struct {
	done   chan struct{}
	l      *dlm.Lock
	err    error
	cancel context.CancelFunc
}

func (p *process) begin(t testing.TB, f func(context.Context) (*dlm.Lock, error)) *pending {
	ctx, cancel := context.WithCancel(p.e.ctx(t))
	t.Cleanup(cancel)
	q := &pending{done: make(chan struct{}), cancel: cancel}
	go func() {
		q.l, q.err = f(ctx)
		close(q.done)
	}()
	return q
}

// queue requests a lock that must wait, and returns when it does: it is seen by others because the holder, which had
// asked for notices, gets one.
func (p *process) queue(t testing.TB, name string, mode dlm.Mode, opts dlm.LockOptions, holder *dlm.Lock) *pending {
	t.Helper()
	q := p.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return p.Lock(ctx, name, mode, opts) })
	q.queued(t, p.e, holder)
	return q
}

func (q *pending) queued(t testing.TB, e *env, holder *dlm.Lock) {
	t.Helper()
	select {
	case <-holder.Blocking():
	case <-q.done:
		t.Fatalf("the request did not wait: %v", q.err)
	case <-time.After(e.Patience):
		t.Fatal("the holder of the lock got no notice")
	}
}

func (q *pending) wait(t testing.TB, e *env) error {
	t.Helper()
	select {
	case <-q.done:
	case <-time.After(e.Patience):
		t.Fatal("no answer in time")
	}
	return q.err
}

// free requires that nobody has the resource, waiting for releases that are on their way.
func (p *process) free(t testing.TB, name string) {
	t.Helper()
	l := p.lock(t, name, dlm.EX, dlm.LockOptions{})
	must(t, l.Unlock(p.e.ctx(t)))
}

// held requires that somebody has the resource in a mode that conflicts with mode.
func (p *process) held(t testing.TB, name string, mode dlm.Mode) {
	t.Helper()
	l, err := p.Lock(p.e.ctx(t), name, mode, dlm.LockOptions{NoQueue: true})
	if err == nil {
		_ = l.Unlock(p.e.ctx(t))
	}
	wantError(t, err, dlm.ErrBusy)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// settled waits until the package has nothing left to undo.
func (p *process) settled(t testing.TB) {
	t.Helper()
	eventually(t, p.e, "requests remain unsettled", func() bool {
		s := p.Stats()
		return s.Unsettled == 0 && s.InFlight == 0 && s.Queued == 0
	})
}

// eventually polls, because what it waits for is another node's or a kernel's doing, which tells nobody.
func eventually(t testing.TB, e *env, failure string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(e.Patience)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(failure)
		}
	}
}

// killable is a Kernel whose devices can all be closed at once.
type killable struct {
	dlm.Kernel
	mu   sync.Mutex // guards devs
	devs []dlm.Device
}

func (k *killable) Lockspace(lockspace string, minor uint32) (dlm.Device, error) {
	d, err := k.Kernel.Lockspace(lockspace, minor)
	if err == nil {
		k.mu.Lock()
		k.devs = append(k.devs, d)
		k.mu.Unlock()
	}
	return d, err
}

// Attach, of a Kernel that can do it.
func (k *killable) Attach(lockspace string, minor uint32, fd int) (dlm.Device, error) {
	hk, ok := k.Kernel.(dlm.HandoverKernel)
	if !ok {
		return nil, dlm.ErrNoHandover
	}
	d, err := hk.Attach(lockspace, minor, fd)
	if err == nil {
		k.mu.Lock()
		k.devs = append(k.devs, d)
		k.mu.Unlock()
	}
	return d, err
}

func (k *killable) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devs {
		_ = d.Close()
	}
	k.devs = nil
}
