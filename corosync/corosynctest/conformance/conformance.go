// Package conformance says what corosync does, as tests: run against the simulation they show that it is right, and run
// against real corosync they show that what package corosync and the simulation take for granted is so.
//
//	go test ./corosync/corosynctest/conformance                                  # on the simulation
//	VMLOCKD_LAB=1 go test -run TestOne ./corosync/corosynctest/conformance       # on one real corosync in namespaces, 15 s
//	VMLOCKD_LAB=1 go test -run TestLab ./corosync/corosynctest/conformance       # on three nodes of a lab, two minutes
package conformance

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// Process is a process on a node.
type Process interface {
	corosync.System
	// Kill ends it by SIGKILL. It may have ended.
	Kill()
}

// Site is where the suite is run: nodes 1 to Nodes, all in one ring at the beginning.
type Site struct {
	Nodes int
	// Start starts a process on a node.
	Start func(t testing.TB, node int) Process
	// StopCorosync ends the corosync of a node, and StartCorosync starts it again. It returns at once.
	StopCorosync, StartCorosync func(t testing.TB, node int)
	// Suspend stops the corosync of a node like SIGSTOP, and Resume ends that.
	Suspend, Resume func(t testing.TB, node int)
	// Cut separates the last node from the others, and Heal ends that. Without them (nil) the tests that need them are skipped.
	Cut, Heal func(t testing.TB)
	// PowerOff takes the power from the last node. The test that does it is the last one.
	PowerOff func(t testing.TB)
	// Slow: every call takes long, as from one machine to another; so there are fewer of them.
	Slow bool
	// Patience is how long anything may take that must happen. 0 is a minute.
	Patience time.Duration
}

// env is a Site with helpers.
type env struct {
	Site
}

// Run runs the suite.
func Run(t *testing.T, site Site) {
	if site.Patience == 0 {
		site.Patience = time.Minute
	}
	e := &env{site}
	for _, c := range []struct {
		name  string
		nodes int
		cut   bool
		f     func(*testing.T, *env)
	}{
		{"Join", 1, false, testJoin},
		{"Alone", 1, false, testAlone},
		{"Twice", 1, false, testTwice},
		{"Send", 1, false, testSend},
		{"Order", 1, false, testOrder},
		{"Groups", 1, false, testGroups},
		{"Leave", 1, false, testLeave},
		{"ProcDown", 1, false, testProcDown},
		{"Quorum", 1, false, testQuorum},
		{"Cmap", 1, false, testCmap},
		{"Restart", 1, false, testRestart},
		{"Suspended", 1, false, testSuspended},
		{"NodeLeaves", 3, false, testNodeLeaves},
		{"Partition", 3, true, testPartition},
		{"PowerOff", 3, false, testPowerOff},
	} {
		t.Run(c.name, func(t *testing.T) {
			if site.Nodes < c.nodes || c.cut && site.Cut == nil {
				t.Skipf("needs %d nodes, and this site has %d", c.nodes, site.Nodes)
			}
			c.f(t, e)
		})
	}
}

// ctx lasts as long as anything may take, and longer than the test, for its cleaning up.
func (e *env) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), e.Patience)
	t.Cleanup(cancel)
	return ctx
}

func (e *env) start(t testing.TB, node int) Process {
	p := e.Start(t, node)
	t.Cleanup(p.Kill)
	return p
}

// nodes puts n processes on the nodes in turn.
func (e *env) nodes(n int) []int {
	var list []int
	for i := range n {
		list = append(list, i%e.Nodes+1)
	}
	return list
}

// groupName is a name that no other test has.
func groupName() string { return "cf" + rand.Text()[:8] }

// member is a process in a group, with all it has heard.
type member struct {
	*corosync.Group
	e    *env
	p    Process
	self corosync.Member
}

func (e *env) join(t testing.TB, p Process, group string) *member {
	t.Helper()
	g, err := corosync.Join(e.ctx(t), p, group, corosync.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(e.ctx(t)); err != nil {
			t.Error(err)
		}
	})
	m := &member{Group: g, e: e, p: p}
	m.self = want[corosync.Up](t, m).Self
	return m
}

// joinAll has n processes join, one after the other, each waiting until all before it have heard of it.
func (e *env) joinAll(t testing.TB, n int) []*member {
	t.Helper()
	group := groupName()
	var all []*member
	for _, node := range e.nodes(n) {
		m := e.join(t, e.start(t, node), group)
		all = append(all, m)
		for _, o := range all {
			v := want[corosync.Membership](t, o)
			joined(t, v, m.self, corosync.ReasonJoin)
			if len(v.Members) != len(all) || len(v.Left) != 0 {
				t.Fatalf("%v sees %+v after member %d joined", o.self, v, len(all))
			}
		}
	}
	return all
}

// next is the next event, whatever it is.
func (m *member) next(t testing.TB) corosync.Event {
	t.Helper()
	select {
	case ev, ok := <-m.Events():
		if !ok {
			t.Fatal("the events have ended")
		}
		return ev
	case <-time.After(m.e.Patience):
		t.Fatalf("%v: no event for %v", m.self, m.e.Patience)
	}
	return nil
}

// want is the next event, which must be of that type.
func want[E corosync.Event](t testing.TB, m *member) E {
	t.Helper()
	ev := m.next(t)
	e, ok := ev.(E)
	if !ok {
		t.Fatalf("%v: got %T %+v, want a %T", m.self, ev, ev, e)
	}
	return e
}

// message is the next event, which must be a message with that text.
func message(t testing.TB, m *member, from corosync.Member, text string) {
	t.Helper()
	got := want[corosync.Message](t, m)
	if got.From != from || string(got.Data) != text {
		t.Fatalf("%v: got %q from %v, want %q from %v", m.self, got.Data, got.From, text, from)
	}
}

func joined(t testing.TB, v corosync.Membership, who corosync.Member, why corosync.Reason) {
	t.Helper()
	if len(v.Joined) != 1 || v.Joined[0] != (corosync.Change{Member: who, Reason: why}) {
		t.Fatalf("joined: %+v, want %v with %q", v, who, why)
	}
}

func left(t testing.TB, v corosync.Membership, who corosync.Member, why corosync.Reason) {
	t.Helper()
	if len(v.Left) != 1 || v.Left[0] != (corosync.Change{Member: who, Reason: why}) {
		t.Fatalf("left: %+v, want %v with %q", v, who, why)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
