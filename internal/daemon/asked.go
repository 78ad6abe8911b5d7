package daemon

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/peers"
)

// holders is for parts that are made before the lock table.
func (i *instance) holders() []locking.Holder {
	locks := i.table.Load()
	if locks == nil {
		return nil
	}
	return locks.Holders()
}

// holdersOf is that for one resource of the backend.
func (i *instance) holdersOf(resource string) []locking.Holder {
	locks := i.table.Load()
	if locks == nil {
		return nil
	}
	return locks.HoldersOf(resource)
}

func holdings(list []locking.Holder) []peers.Holding {
	out := make([]peers.Holding, len(list))
	for i, h := range list {
		out[i] = peers.Holding{
			Resource: h.ID, Lockspace: h.Ref.Lockspace, Name: h.Ref.Name, Mode: h.Mode.String(),
			OwnerName: h.Owner.Name, OwnerUUID: locking.FormatUUID(h.Owner.UUID), OwnerPID: int(h.Owner.PID), Since: h.Since,
		}
	}
	return out
}

// holder is a peer's word, which may be anything.
func holderOf(h peers.Holding) locking.Holder {
	out := locking.Holder{
		Owner: locking.Owner{PID: int32(h.OwnerPID), Name: h.OwnerName},
		Ref:   locking.Ref{Lockspace: h.Lockspace, Name: h.Name}, Mode: locking.Exclusive, Since: h.Since, ID: h.Resource,
	}
	if h.Mode == locking.Shared.String() {
		out.Mode = locking.Shared
	}
	out.Owner.UUID, _ = locking.ParseUUID(h.OwnerUUID)
	return out
}

// forRefusals is what the backend asks when a lock is held elsewhere.
type forRefusals struct{ *others }

func (o forRefusals) Holders(ctx context.Context, resource string) ([]locking.RemoteHolder, []uint32) {
	p := o.met.Load()
	if p == nil {
		return nil, nil
	}
	list, answered := p.Holders(ctx, resource)
	own := p.Node()
	out := make([]locking.RemoteHolder, 0, len(list))
	for _, h := range list {
		if h.Node != own { // who holds it here is known better
			out = append(out, locking.RemoteHolder{Holder: holderOf(h), Node: h.Node})
		}
	}
	return out, answered
}

// forOperators is what the control socket asks.
type forOperators struct{ *others }

func (o forOperators) Members() []control.PeerMember {
	list := o.members()
	out := make([]control.PeerMember, len(list))
	for i, p := range list {
		out[i] = control.PeerMember{
			NodeID: p.Node, Name: o.nameOf(p.Node, p.Name), Version: p.Version, Silent: !p.Silent.IsZero() || !p.Known,
			ConfigDigest: p.Digest, RulesDigest: p.Rules, Self: p.Self,
		}
	}
	return out
}

func (o forOperators) Names() map[uint32]string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.names)
}

func (o forOperators) Absent(node uint32) bool {
	p := o.met.Load()
	return p != nil && p.Absent(node)
}

func (o forOperators) nameOf(node uint32, said string) string {
	if name := o.name(node); name != "" {
		return name
	}
	return said
}

func (o forOperators) Holdings(ctx context.Context) []control.PeerHoldings {
	p := o.met.Load()
	if p == nil {
		return o.rest(nil, nil)
	}
	list, err := p.Holdings(ctx)
	answers := map[uint32]*control.PeerHoldings{}
	for _, n := range list {
		answer := o.answerOf(answers, n.Node, n.Name)
		if n.Err != nil {
			answer.Err = n.Err.Error()
		}
		for _, h := range n.Holdings {
			answer.Holders = append(answer.Holders, holderOf(h))
		}
	}
	return o.rest(answers, err)
}

func (o forOperators) Holders(ctx context.Context, sought []control.Sought) []control.PeerHoldings {
	p := o.met.Load()
	if p == nil {
		return o.rest(nil, nil)
	}
	lists, answered := make([][]peers.Holding, len(sought)), make([][]uint32, len(sought))
	var wg sync.WaitGroup
	for i, s := range sought {
		id := s.ID
		if id == "" {
			id = cluster.ResourceName(s.Ref)
		}
		wg.Go(func() { lists[i], answered[i] = p.Holders(ctx, id) })
	}
	wg.Wait()
	answers := map[uint32]*control.PeerHoldings{}
	for _, m := range p.Members() {
		answer := o.answerOf(answers, m.Node, m.Name)
		for _, nodes := range answered {
			if !m.Self && !slices.Contains(nodes, m.Node) {
				answer.Err = peers.ErrNoAnswer.Error()
			}
		}
	}
	for i, list := range lists {
		for _, h := range list {
			held := holderOf(h)
			if s := sought[i]; s.ID == "" || s.Ref.Lockspace != "" {
				held.Ref = s.Ref // long names are cut on the way; paths are not, and a disk may have several
			}
			answer := o.answerOf(answers, h.Node, "")
			answer.Holders = append(answer.Holders, held)
		}
	}
	var err error
	if !p.Connected() {
		err = corosync.ErrDown
	}
	return o.rest(answers, err)
}

func (o forOperators) answerOf(answers map[uint32]*control.PeerHoldings, node uint32, said string) *control.PeerHoldings {
	a := answers[node]
	if a == nil {
		a = &control.PeerHoldings{NodeID: node, Name: o.nameOf(node, said)}
		answers[node] = a
	}
	return a
}

// rest makes a list of the answers of others, and adds who did not answer and why.
func (o forOperators) rest(answers map[uint32]*control.PeerHoldings, err error) (out []control.PeerHoldings) {
	self, seen := o.selfNodes(), map[uint32]bool{}
	for node, a := range answers {
		seen[node] = true
		if !self[node] {
			out = append(out, *a)
		}
	}
	for _, s := range o.missing(self, seen, err) {
		out = append(out, control.PeerHoldings{NodeID: s.node, Name: s.name, Err: s.why})
	}
	slices.SortFunc(out, func(a, b control.PeerHoldings) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return out
}

// Identify asks the other hosts which disk a path is there.
func (o forOperators) Identify(ctx context.Context, path string) (out []control.PeerDisk) {
	var list []peers.NodeDisk
	var err error
	if p := o.met.Load(); p != nil {
		list, err = p.Identify(ctx, path)
	}
	self, seen := o.selfNodes(), map[uint32]bool{}
	for _, n := range list {
		if n.Node == 0 || self[n.Node] {
			continue
		}
		seen[n.Node] = true
		d := control.PeerDisk{NodeID: n.Node, Name: o.nameOf(n.Node, n.Name), Disk: control.Disk{
			Path: n.Disk.Path, Type: n.Disk.Type, Scope: n.Disk.Scope, Name: n.Disk.Name, Resource: n.Disk.Resource,
			ByPath: n.Disk.ByPath, Doubt: n.Disk.Doubt, Steps: n.Disk.Steps, Error: n.Disk.Error,
		}}
		switch {
		case errors.Is(n.Err, peers.ErrNoAnswer):
			d.Err = n.Err.Error() + "; an earlier version of vmlockd does not know this question"
		case n.Err != nil:
			d.Err = n.Err.Error()
		}
		out = append(out, d)
	}
	for _, s := range o.missing(self, seen, err) {
		out = append(out, control.PeerDisk{NodeID: s.node, Name: s.name, Err: s.why})
	}
	slices.SortFunc(out, func(a, b control.PeerDisk) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return out
}

// selfNodes are the numbers that mean this host.
func (o forOperators) selfNodes() map[uint32]bool {
	self := map[uint32]bool{}
	if node, err := dlm.NodeID(dlm.Host()); err == nil {
		self[node] = true
	}
	if p := o.met.Load(); p != nil {
		self[p.Node()] = true
	}
	return self
}

// silence is a host that did not answer, and why. Without a node it is all that there
// may be.
type silence struct {
	node uint32
	name string
	why  string
}

// missing are those who did not answer: hosts that corosync knows, and if it has not
// said which those are, all of them.
func (o forOperators) missing(self, seen map[uint32]bool, err error) (out []silence) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil && o.met.Load() == nil {
		err = o.unmet
	}
	why := "no vmlockd runs there, or it is not reached"
	if err != nil {
		why = err.Error()
	}
	for node, name := range o.names {
		if !seen[node] && !self[node] {
			out = append(out, silence{node, name, why})
		}
	}
	switch {
	case o.names != nil:
	case err != nil:
		out = append(out, silence{why: why})
	default:
		out = append(out, silence{why: "it is not known which hosts there are: " + o.nameless.Error()})
	}
	return out
}
