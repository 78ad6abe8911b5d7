package lab

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pollInterval is how often a condition in a node is looked at; a look is one command, about 50 ms of a node's time. At
// first it is looked at sooner.
const (
	pollInterval = 200 * time.Millisecond
	pollFirst    = 10 * time.Millisecond
)

// Membership is the cluster as one node sees it.
type Membership struct {
	// Quorate says that dlm_controld grants.
	Quorate bool
	// Members are the node numbers that dlm_controld counts in, in order. A node is in once both its corosync and its
	// dlm_controld have joined.
	Members []int
}

// Membership asks the node's dlm_controld. It is an error if that does not answer.
func (n *Node) Membership(ctx context.Context) (Membership, error) {
	res, err := n.Exec(ctx, "dlm_tool", "status")
	if err != nil {
		return Membership{}, err
	}
	if !res.OK() {
		return Membership{}, fmt.Errorf("%s: dlm_tool status: %v", n.Name(), res)
	}
	return parseDLMStatus(res.Stdout)
}

// parseDLMStatus reads what dlm_tool 4.2 prints:
//
//	cluster nodeid 1 quorate 1 ring seq 8 8
//	daemon now 11 fence_pid 0
//	node 1 M add 6 rem 0 fail 0 fence 0 at 0 0
func parseDLMStatus(out string) (Membership, error) {
	var m Membership
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && f[0] == "cluster" && f[3] == "quorate":
			m.Quorate = f[4] == "1"
		case len(f) >= 3 && f[0] == "node" && f[2] == "M":
			id, err := strconv.Atoi(f[1])
			if err != nil {
				return m, fmt.Errorf("dlm_tool status: %q", line)
			}
			m.Members = append(m.Members, id)
		}
	}
	slices.Sort(m.Members)
	return m, nil
}

// WaitQuorate waits until all nodes that have power and are not cut off see each other in one quorate cluster, with dlm_controld ready
// on each. When the context ends first, the error says what was missing.
func (l *Lab) WaitQuorate(ctx context.Context) error {
	var in []*Node
	var ids []int
	for _, n := range l.Nodes() {
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if st.State == NodeRunning && !st.Cut {
			in, ids = append(in, n), append(ids, n.id)
		}
	}
	// What one node cannot have, the others wait for in vain.
	waiting, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	return l.each(func(n *Node) error {
		if !slices.Contains(in, n) {
			return nil
		}
		err := n.WaitMembers(waiting, ids...)
		if err != nil {
			fail(fmt.Errorf("given up because of %s", n.Name()))
		}
		return err
	})
}

// WaitRing waits until corosync on the node has exactly these nodes in its ring, whatever else runs there.
func (n *Node) WaitRing(ctx context.Context, ids ...int) error {
	want := slices.Sorted(slices.Values(ids))
	var last string
	err := WaitFor(ctx, fmt.Sprintf("corosync to have nodes %v in its ring", want), func(ctx context.Context) (bool, error) {
		ring, res, err := n.ring(ctx)
		if err != nil {
			return false, err
		}
		last = res.String()
		return slices.Equal(ring, want), nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w; last seen: %s", n.Name(), err, last)
	}
	return nil
}

// Ring lists the nodes that corosync on this one has in its ring, in order; none if it does not answer.
func (n *Node) Ring(ctx context.Context) ([]int, error) {
	ring, _, err := n.ring(ctx)
	return ring, err
}

func (n *Node) ring(ctx context.Context) ([]int, Result, error) {
	res, err := n.Exec(ctx, "corosync-quorumtool", "-s") // its status is about quorum
	return ringOf(res.Stdout), res, err
}

// ringOf reads the nodes from what corosync-quorumtool -s prints:
//
//	Nodeid      Votes Name
//	     1          1 node1 (local)
//	     3          1 node3
//	     0          1 Qdevice
//
// The last one is the quorum device, which is in no ring.
func ringOf(out string) []int {
	_, table, _ := strings.Cut(out, " Votes ")
	var ids []int
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 0 {
			if id, err := strconv.Atoi(f[0]); err == nil && id != 0 {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// WaitMembers waits until the node is in a quorate cluster that consists of exactly these nodes. When the context
// ends first, the error says how it was instead.
func (n *Node) WaitMembers(ctx context.Context, ids ...int) error {
	want := slices.Sorted(slices.Values(ids))
	return n.waitMembership(ctx, fmt.Sprintf("a quorate cluster of nodes %v", want), func(m Membership) bool {
		return m.Quorate && slices.Equal(m.Members, want)
	})
}

// WaitInquorate waits until the node knows that it has lost quorum.
func (n *Node) WaitInquorate(ctx context.Context) error {
	return n.waitMembership(ctx, "loss of quorum", func(m Membership) bool { return !m.Quorate })
}

func (n *Node) waitMembership(ctx context.Context, what string, ok func(Membership) bool) error {
	var last string
	err := WaitFor(ctx, what, func(ctx context.Context) (bool, error) {
		m, err := n.Membership(ctx)
		if err != nil {
			// dlm_controld has not started yet, or has ended. A dead service ends the wait: it does not come back by itself.
			if err := n.Service(ServiceDLM).alive(ctx); err != nil {
				return false, err
			}
			if ctx.Err() == nil {
				last = err.Error()
			}
			return false, nil
		}
		last = fmt.Sprintf("%+v", m)
		return ok(m), nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w; last seen: %s", n.Name(), err, last)
	}
	return nil
}

// WaitFor looks at a condition until it holds, fails, or the context ends; the error then says what was waited for.
func WaitFor(ctx context.Context, what string, condition func(context.Context) (bool, error)) error {
	for pause := pollFirst; ; pause = min(2*pause, pollInterval) {
		ok, err := condition(ctx)
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		}
	}
}
