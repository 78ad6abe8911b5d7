package conformance

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// tracker is a Quorum under test.
type tracker struct {
	*corosync.Quorum
	e *env
}

func (e *env) track(t testing.TB, p Process) *tracker {
	t.Helper()
	q, err := corosync.Track(e.ctx(t), p, corosync.Options{})
	must(t, err)
	t.Cleanup(func() {
		if err := q.Close(e.ctx(t)); err != nil {
			t.Error(err)
		}
	})
	return &tracker{q, e}
}

// until waits for an event, and returns it with all before it.
func (q *tracker) until(t testing.TB, what string, ok func(corosync.Event) bool) []corosync.Event {
	t.Helper()
	var all []corosync.Event
	timeout := time.After(q.e.Patience)
	for {
		select {
		case ev := <-q.Events():
			all = append(all, ev)
			if ok(ev) {
				return all
			}
		case <-timeout:
			t.Fatalf("waiting for %s, got %+v", what, all)
		}
	}
}

func testQuorum(t *testing.T, e *env) {
	q := e.track(t, e.start(t, 1))
	seen := q.until(t, "a quorate ring of all", func(ev corosync.Event) bool {
		r, is := ev.(corosync.Ring)
		return is && r.Quorate && len(r.Members) == e.Nodes
	})
	if _, is := seen[0].(corosync.Up); !is {
		t.Errorf("the first event is %T", seen[0])
	}
	r, err := q.Ring()
	must(t, err)
	if !r.Quorate || len(r.Members) != e.Nodes || !slices.IsSorted(r.Members) || r.ID.Seq == 0 || !slices.Contains(r.Members, r.ID.Node) {
		t.Errorf("the ring is %+v", r)
	}
}

func testCmap(t *testing.T, e *env) {
	c := corosync.NewCmap(e.start(t, e.Nodes))
	ctx := e.ctx(t)
	name, err := c.String(ctx, "totem.cluster_name")
	must(t, err)
	if name == "" {
		t.Error("the cluster has no name")
	}
	token, err := c.Uint32(ctx, "runtime.config.totem.token")
	must(t, err)
	consensus, err := c.Uint32(ctx, "runtime.config.totem.consensus")
	must(t, err)
	if token == 0 || consensus < token {
		t.Errorf("token %d ms, consensus %d ms", token, consensus)
	}
	if _, err := c.Uint32(ctx, "totem.cluster_name"); !errors.Is(err, corosync.ErrInvalid) {
		t.Errorf("a name as a number: %v", err)
	}
	if _, err := c.Get(ctx, "no.such.key"); !errors.Is(err, corosync.ErrNoKey) {
		t.Errorf("a key that there is not: %v", err)
	}
	for _, key := range []string{"", "ab", "a\x00b", string(make([]byte, 256))} {
		if _, err := c.Get(ctx, key); !errors.Is(err, corosync.ErrInvalid) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	nodes, err := c.Nodes(ctx)
	must(t, err)
	if len(nodes) != e.Nodes {
		t.Errorf("configured are %+v", nodes)
	}
	for i, n := range nodes {
		if n.ID == 0 || n.Name == "" || n.Addr == "" || i > 0 && nodes[i-1].ID >= n.ID {
			t.Errorf("configured are %+v", nodes)
		}
	}
	wide := ""
	if e.Slow {
		wide = "tot"
	}
	all, err := c.List(ctx, wide)
	must(t, err)
	some, err := c.List(ctx, "totem.")
	must(t, err)
	if len(some) == 0 || len(all) < len(some) || all["totem.cluster_name"].String() != name || some["totem.cluster_name"].String() != name {
		t.Errorf("%d keys, %d of them under totem.", len(all), len(some))
	}
	none, err := c.List(ctx, "no.such.key")
	if err != nil || len(none) != 0 {
		t.Errorf("keys that there are not: %v, %v", none, err)
	}
}

// ringOf says whether an event is a ring of n nodes that has had its say about quorum.
func ringOf(n int, quorate bool) func(corosync.Event) bool {
	return func(ev corosync.Event) bool {
		r, is := ev.(corosync.Ring)
		return is && len(r.Members) == n && r.Quorate == quorate
	}
}

// leaves checks that the others hear of a member's loss with its node, and that the ring says so too.
func leaves(t *testing.T, e *env, others []*member, q *tracker, gone *member) {
	t.Helper()
	seen := q.until(t, "a ring without the node", ringOf(e.Nodes-1, true))
	found := false
	for _, ev := range seen {
		r, is := ev.(corosync.Ring)
		found = found || is && slices.Equal(r.Left, []uint32{gone.self.Node}) && !slices.Contains(r.Members, gone.self.Node)
	}
	if !found {
		t.Errorf("no ring says that node %d left: %+v", gone.self.Node, seen)
	}
	for _, m := range others {
		v := want[corosync.Membership](t, m)
		left(t, v, gone.self, corosync.ReasonNodeDown)
		if len(v.Members) != len(others) {
			t.Errorf("members are %v", v.Members)
		}
	}
}

// testNodeLeaves: the corosync of a node ends, and starts again.
func testNodeLeaves(t *testing.T, e *env) {
	all := e.joinAll(t, e.Nodes)
	others, gone := all[:e.Nodes-1], all[e.Nodes-1]
	q := e.track(t, others[0].p)
	q.until(t, "all", ringOf(e.Nodes, true))
	e.StopCorosync(t, e.Nodes)
	leaves(t, e, others, q, gone)
	e.StartCorosync(t, e.Nodes)
	for _, m := range others {
		// Its corosync begins with a ring of its own, in which the process may have joined before it meets the others.
		v := want[corosync.Membership](t, m)
		if len(v.Joined) != 1 || v.Joined[0].Member != gone.self || v.Joined[0].Reason != corosync.ReasonJoin && v.Joined[0].Reason != corosync.ReasonNodeUp {
			t.Errorf("after the node is back: %+v", v)
		}
	}
	q.until(t, "all", ringOf(e.Nodes, true))
}

// testPartition: a node is cut off and comes back. Both sides lose the other, and find it again.
func testPartition(t *testing.T, e *env) {
	all := e.joinAll(t, e.Nodes)
	others, gone := all[:e.Nodes-1], all[e.Nodes-1]
	q, alone := e.track(t, others[0].p), e.track(t, gone.p)
	q.until(t, "all", ringOf(e.Nodes, true))
	e.Cut(t)
	leaves(t, e, others, q, gone)
	alone.until(t, "a ring without quorum", ringOf(1, false))
	lost := want[corosync.Membership](t, gone)
	if len(lost.Left) != len(others) || !slices.Equal(lost.Members, []corosync.Member{gone.self}) {
		t.Errorf("the node that was cut off sees %+v", lost)
	}
	for _, c := range lost.Left {
		if c.Reason != corosync.ReasonNodeDown {
			t.Errorf("the node that was cut off sees %+v", lost)
		}
	}
	// Each part goes on by itself.
	must(t, others[0].Send(e.ctx(t), []byte("here")))
	must(t, gone.Send(e.ctx(t), []byte("there")))
	for _, m := range others {
		message(t, m, others[0].self, "here")
	}
	message(t, gone, gone.self, "there")
	e.Heal(t)
	for _, m := range all {
		met := map[corosync.Member]bool{m.self: true}
		for len(met) < 2 || m == gone && len(met) < e.Nodes {
			v := want[corosync.Membership](t, m)
			for _, c := range v.Joined {
				if c.Reason != corosync.ReasonNodeUp {
					t.Errorf("%v sees %+v", m.self, v)
				}
				met[c.Member] = true
			}
		}
	}
	q.until(t, "all", ringOf(e.Nodes, true))
	alone.until(t, "all", ringOf(e.Nodes, true))
	must(t, gone.Send(e.ctx(t), []byte("back")))
	for _, m := range all {
		message(t, m, gone.self, "back")
	}
}

func testPowerOff(t *testing.T, e *env) {
	all := e.joinAll(t, e.Nodes)
	others, gone := all[:e.Nodes-1], all[e.Nodes-1]
	q := e.track(t, others[0].p)
	q.until(t, "all", ringOf(e.Nodes, true))
	e.PowerOff(t)
	leaves(t, e, others, q, gone)
}
