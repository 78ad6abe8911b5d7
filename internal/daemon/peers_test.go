package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/peers"
)

// fakeTable is what a daemon holds.
type fakeTable struct {
	held   []locking.Holder
	listed atomic.Int64 // how often all were asked for
}

func (f *fakeTable) holders() []locking.Holder {
	f.listed.Add(1)
	return f.held
}

func (f *fakeTable) holdersOf(resource string) (list []locking.Holder) {
	for _, h := range f.held {
		if h.ID == resource {
			list = append(list, h)
		}
	}
	return list
}

// hosts are daemons in a simulated cluster, as far as they know each other.
type hosts struct {
	*corosynctest.Cluster
	t      *testing.T
	others map[int]*others
	tables map[int]*fakeTable
	procs  map[int]*corosynctest.Process
}

// inHosts runs f in a bubble, with that many hosts and no daemon yet.
func inHosts(t *testing.T, n int, f func(t *testing.T, h *hosts)) {
	fakeclock.Test(t, func(t *testing.T) {
		h := &hosts{Cluster: corosynctest.NewCluster(n), t: t, others: map[int]*others{}, tables: map[int]*fakeTable{}, procs: map[int]*corosynctest.Process{}}
		f(t, h)
		for _, o := range h.others {
			if err := o.close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
}

func ref(name string) locking.Ref { return locking.Ref{Lockspace: "/leases", Name: name} }

// start starts a host's daemon, which holds what is named so and what is named "common".
func (h *hosts) start(node int, lockspace string) *others {
	table := &fakeTable{}
	for _, name := range []string{fmt.Sprint("own", node), "common"} {
		table.held = append(table.held, locking.Holder{
			ID: cluster.ResourceName(ref(name)), Ref: ref(name), Mode: locking.Shared, Owner: locking.Owner{PID: int32(node), Name: fmt.Sprint("vm", node)}, Since: time.Unix(1e9, 0).UTC(),
		})
	}
	c := config.Config{Backend: config.BackendCluster}
	c.Cluster.Lockspace = lockspace
	self := peers.Info{Name: fmt.Sprint("said", node), Version: "1", Digest: digest(c)}
	h.tables[node], h.procs[node] = table, h.Node(node).NewProcess()
	h.others[node] = joinOthers(h.procs[node], self, table, findThere(node), slog.New(slog.DiscardHandler))
	return h.others[node]
}

// met lets them meet.
func (h *hosts) met() {
	time.Sleep(2 * meetAfter) // by the bubble's clock: daemons join the group a moment after their start
	fakeclock.Wait()
}

// findThere names a disk by the host that looks at it.
func findThere(node int) diskFinder {
	return func(_ context.Context, path string) peers.Disk {
		return peers.Disk{Path: path, Scope: "cluster", Name: fmt.Sprint("disk of ", node)}
	}
}

// textOfDisks is short for what was answered: "2:disk of 2 3!why".
func textOfDisks(list []control.PeerDisk) string {
	var out []string
	for _, d := range list {
		s := fmt.Sprint(d.NodeID)
		if d.Err != "" {
			s += "!" + d.Err
		} else {
			s += ":" + d.Disk.Name
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// text is short for what was answered: "2:own2,common 3!why".
func text(list []control.PeerHoldings) string {
	var out []string
	for _, p := range list {
		s := fmt.Sprint(p.NodeID)
		for i, h := range p.Holders {
			s += ":,"[min(i, 1):][:1] + h.Ref.Name
		}
		if p.Err != "" {
			s += "!" + p.Err
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// ask asks in both ways, and wants one answer.
func ask(t *testing.T, o *others, all, common string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	if got := text(forOperators{o}.Holdings(ctx)); !strings.HasPrefix(got, all) || all == "" && got != "" {
		t.Errorf("holdings are %q, want %q", got, all)
	}
	if got := text(forOperators{o}.Holders(ctx, []control.Sought{{Ref: ref("common")}})); !strings.HasPrefix(got, common) || common == "" && got != "" {
		t.Errorf("holders are %q, want %q", got, common)
	}
}

func TestOthersAnswer(t *testing.T) {
	inHosts(t, 3, func(t *testing.T, h *hosts) {
		for node := 1; node <= 3; node++ {
			h.start(node, "vmlockd")
		}
		// Until they have met, nobody may believe that this is all.
		ask(t, h.others[1], "0!this daemon has just been started", "0!this daemon has just been started")
		h.met()
		ask(t, h.others[1], "2:own2,common 3:own3,common", "2:common 3:common")
		if names := (forOperators{h.others[1]}).Holdings(t.Context()); names[0].Name != "node2" {
			t.Errorf("%+v", names)
		}
		if got := textOfDisks((forOperators{h.others[1]}).Identify(t.Context(), "/x")); got != "2:disk of 2 3:disk of 3" {
			t.Errorf("the disks are %q", got)
		}
		h.tables[2].listed.Store(0)
		list, answered := forRefusals{h.others[1]}.Holders(t.Context(), cluster.ResourceName(ref("own2")))
		if len(list) != 1 || list[0].Node != 2 || list[0].Owner.Name != "vm2" || list[0].Ref != ref("own2") || len(answered) != 2 {
			t.Errorf("for a refusal: %+v, answered %v", list, answered)
		}
		if list, _ = (forRefusals{h.others[1]}).Holders(t.Context(), cluster.ResourceName(ref("common"))); len(list) != 2 || list[0].Node != 2 || list[1].Node != 3 {
			t.Errorf("for a refusal of what is shared here too: %+v", list)
		}
		if h.tables[2].listed.Load() != 0 {
			t.Error("a refusal made another host list all it holds")
		}
		// A long name is cut on the way, and found all the same.
		long := ref(strings.Repeat("x", 5000))
		// What is locked under another path is found by its id, and shown by that path.
		there := locking.Ref{Name: "/dev/there"}
		h.tables[2].held = []locking.Holder{{Ref: there, ID: "r1"}}
		if got := (forOperators{h.others[1]}).Holders(t.Context(), []control.Sought{{ID: "r1", Ref: locking.Ref{Name: "/dev/here"}}}); len(got) != 2 || len(got[0].Holders) != 1 || got[0].Holders[0].Ref != there {
			t.Errorf("%+v", got)
		}
		h.tables[2].held = []locking.Holder{{Ref: long, ID: cluster.ResourceName(long)}}
		if got := (forOperators{h.others[1]}).Holders(t.Context(), []control.Sought{{Ref: long}}); len(got) != 2 || len(got[0].Holders) != 1 || got[0].Holders[0].Ref != long {
			t.Errorf("%d answers", len(got))
		}
	})
}

// While a host is frozen, whatever operators ask is answered in the time that the
// control socket gives it, the frozen host is named, and the others' answers are there;
// also when several ask at once, of whom only two can be served.
func TestFrozenHost(t *testing.T) {
	const patience = 900 * time.Millisecond
	inHosts(t, 3, func(t *testing.T, h *hosts) {
		for node := 1; node <= 3; node++ {
			h.start(node, "vmlockd")
		}
		h.met()
		h.procs[3].Freeze()
		defer h.procs[3].Thaw()
		one := forOperators{h.others[1]}
		for name, question := range map[string]func(context.Context) string{
			"holdings": func(ctx context.Context) string { return text(one.Holdings(ctx)) },
			"holders": func(ctx context.Context) string {
				return text(one.Holders(ctx, []control.Sought{{Ref: ref("common")}}))
			},
			"identify": func(ctx context.Context) string { return textOfDisks(one.Identify(ctx, "/x")) },
		} {
			for _, askers := range []int{1, 2, 5} {
				time.Sleep(5 * time.Second) // by the bubble's clock: so that earlier questions for everything do not count
				answers := make(chan string)
				for range askers {
					go func() {
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						defer cancel()
						begin := time.Now()
						got := question(ctx)
						if took := time.Since(begin); took > patience {
							t.Errorf("%s: it took %v", name, took)
						}
						answers <- got
					}()
				}
				whole := 0
				for range askers {
					got := <-answers
					if !strings.Contains(got, "3!") {
						t.Errorf("%s, %d at once: nobody says that host 3 is missing: %q", name, askers, got)
					}
					if strings.HasPrefix(got, "2:") {
						whole++
					}
				}
				if whole < min(askers, 2) {
					t.Errorf("%s, %d at once: only %d got the answer of host 2", name, askers, whole)
				}
			}
		}
		// What needs nobody's answer takes no time.
		begin := time.Now()
		list := one.Members()
		if took := time.Since(begin); took != 0 || len(list) != 3 || list[1].Silent || !list[2].Silent {
			t.Errorf("after %v: %+v", took, list)
		}
	})
}

// A host that does not answer, on which no daemon runs, or that was added to
// corosync.conf later is said to be missing.
func TestOthersAreMissing(t *testing.T) {
	inHosts(t, 3, func(t *testing.T, h *hosts) {
		one := h.start(1, "vmlockd")
		h.start(2, "vmlockd")
		h.met()
		ask(t, one, "2:own2,common 3!no vmlockd runs there", "2:common 3!no vmlockd runs there")
		if got := textOfDisks((forOperators{one}).Identify(t.Context(), "/x")); !strings.HasPrefix(got, "2:disk of 2 3!no vmlockd runs there") {
			t.Errorf("the disks are %q", got)
		}
		// What is configured has its name all the same, so that it can be called by it.
		if o := (forOperators{one}); o.Names()[3] != "node3" || o.Absent(3) {
			t.Errorf("names %v, absent %v", o.Names(), o.Absent(3))
		}
		for key, v := range map[string]corosync.Value{"nodeid": corosync.UintValue(4), "name": corosync.TextValue("later")} {
			h.Node(1).Set("nodelist.node.3."+key, v)
		}
		time.Sleep(2 * namesAgain) // by the bubble's clock: until the names are read again
		ask(t, one, "2:own2,common 3!no vmlockd runs there, or it is not reached 4!no vmlockd", "2:common 3!no vmlockd")
		if o := (forOperators{one}); !o.Absent(3) || o.Absent(2) {
			t.Error("host 3 is not absent, or host 2 is")
		}
		h.Node(2).StopCorosync()
		h.met()
		ask(t, one, "2!no vmlockd runs there, or it is not reached 3!", "2!no vmlockd runs there, or it is not reached 3!")
		h.Node(2).StartCorosync()
		h.met()
		// Without corosync here nobody can be asked.
		h.Node(1).StopCorosync()
		h.met()
		ask(t, one, "2!no connection to corosync at the moment 3!no connection", "2!no connection to corosync at the moment 3!no connection")
		h.Node(1).StartCorosync()
		h.met()
		ask(t, one, "2:own2,common 3!", "2:common 3!")
	})
}

// Without corosync from the start it is not known which hosts there are, and that
// is said, until it is.
func TestOthersAreUnknown(t *testing.T) {
	inHosts(t, 2, func(t *testing.T, h *hosts) {
		h.Node(1).StopCorosync()
		one := h.start(1, "vmlockd")
		h.start(2, "vmlockd")
		h.met()
		ask(t, one, "0!no connection to corosync at the moment", "0!no connection to corosync at the moment")
		h.Node(1).StartCorosync()
		time.Sleep(2 * namesAgain) // by the bubble's clock: until the names are read again
		ask(t, one, "2:own2,common", "2:common")
	})
	o := forOperators{&others{nameless: errors.New("no library"), unmet: errors.New("no library either")}}
	ask(t, o.others, "0!no library either", "0!no library either")
}

// A corosync.conf without a nodelist says nothing about who is missing.
func TestNodelistIsEmpty(t *testing.T) {
	inHosts(t, 2, func(t *testing.T, h *hosts) {
		for i := range 2 {
			h.Node(1).Set(fmt.Sprintf("nodelist.node.%d.nodeid", i), corosync.TextValue("none"))
		}
		one := h.start(1, "vmlockd")
		h.start(2, "vmlockd")
		h.met()
		ask(t, one, "0!it is not known which hosts there are: corosync.conf has no nodelist 2:own2,common", "0!it is not known which hosts there are: corosync.conf has no nodelist 2:common")
	})
}

// A daemon of another lockspace is seen, its locks are not taken for some of ours,
// and an operator is told.
func TestOtherLockspace(t *testing.T) {
	inHosts(t, 3, func(t *testing.T, h *hosts) {
		one := h.start(1, "vmlockd")
		h.start(2, "vmlockd")
		h.start(3, "else")
		h.met()
		ask(t, one, "2:own2,common 3!its vmlockd is configured differently", "2:common 3!")
		list, answered := forRefusals{one}.Holders(t.Context(), cluster.ResourceName(ref("own3")))
		if len(list) != 0 || len(answered) != 1 {
			t.Errorf("for a refusal: %+v, answered %v", list, answered)
		}
		s := control.New(control.Options{Version: "1", Backend: "cluster", Locks: noLocks{}, Drain: &drainer{}, Events: &control.Events{}, Peers: forOperators{one}})
		found := false
		for _, w := range s.Status(t.Context()).Warnings {
			found = found || w.Code == control.WarnConfiguration && strings.Contains(w.Message, "node3 (3)") && !strings.Contains(w.Message, "node2")
		}
		if !found {
			t.Errorf("warnings are %v", s.Status(t.Context()).Warnings)
		}
	})
}

type noLocks struct{ control.Locks }

func (noLocks) Holders() []locking.Holder     { return nil }
func (noLocks) Waiting() []locking.Waiter     { return nil }
func (noLocks) Returning() []locking.Returner { return nil }
