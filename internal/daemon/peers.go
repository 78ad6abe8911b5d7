package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/identity"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/metrics"
	"github.com/vmlockd/vmlockd/internal/peers"
)

// meetAfter is how long a daemon serves before it joins the group. Every host's
// corosync hears of each that joins or leaves, and prepares megabytes for its
// connection; a daemon that is ended again and again, or replaced, must not keep
// them busy. Until then refusals on other hosts say what the lock itself tells.
const meetAfter = 3 * time.Second

// namesPatience bounds how long corosync is asked for the names of the hosts.
const namesPatience = 3 * time.Second

// others are the lock daemons of the cluster's other hosts. A nil *others knows
// nobody.
type others struct {
	met    atomic.Pointer[peers.Peers] // nil before the group is joined
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	self  peers.Info
	names map[uint32]string // of the hosts, as corosync.conf has them
}

// meetOthers makes this daemon a member of the group of those that use the same
// lockspace. Locks do not depend on it: without it, refusals and listings say less
// about other hosts.
func meetOthers(c config.Config, version string, holders func() []locking.Holder, disks *disks, log *slog.Logger) *others {
	if c.Backend != config.BackendCluster {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	host, _ := os.Hostname()
	o := &others{
		cancel: cancel,
		self:   peers.Info{Name: host, Version: version, Digest: digest(c), Rules: identity.Digest(c.Identity.List()), Guard: "none", Started: time.Now()},
	}
	o.work.Go(func() {
		select {
		case <-time.After(meetAfter):
		case <-ctx.Done():
			return
		}
		o.work.Go(func() { o.learnNames(ctx) })
		if err := o.meet(ctx, "vmlockd:"+c.Cluster.Lockspace, holders, disks, log); err != nil {
			log.Warn("the lock daemons of other hosts cannot be asked, so refusals and listings say less about them", "reason", err)
		}
	})
	return o
}

// meet takes part in the group until ctx ends.
func (o *others) meet(ctx context.Context, name string, holders func() []locking.Holder, disks *disks, log *slog.Logger) error {
	options := peers.GroupOptions()
	options.Background = true
	group, err := corosync.Join(ctx, corosync.Host(), name, options)
	if err != nil {
		return err
	}
	o.mu.Lock()
	p := peers.New(peers.Options{
		Group: group, Self: o.self, Holdings: func() []peers.Holding { return holdings(holders()) }, Log: log,
		Identify: disks.forPeer,
	})
	o.met.Store(p)
	o.mu.Unlock()
	if err := p.Run(ctx); err != nil {
		log.Debug("could not leave the group of lock daemons in good order", "reason", err)
	}
	return nil
}

// members are the daemons in the group, none before it is joined.
func (o *others) members() []peers.Peer {
	if o == nil {
		return nil
	}
	p := o.met.Load()
	if p == nil {
		return nil
	}
	return p.Members()
}

// learnNames asks corosync for the names of the hosts, until it is told.
func (o *others) learnNames(ctx context.Context) {
	cmap := corosync.NewCmap(corosync.Host())
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		ask, cancel := context.WithTimeout(ctx, namesPatience)
		nodes, err := cmap.Nodes(ask)
		cancel()
		if err == nil {
			names := make(map[uint32]string, len(nodes))
			for _, n := range nodes {
				names[n.ID] = n.Name
			}
			o.mu.Lock()
			o.names = names
			o.mu.Unlock()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// close leaves the group.
func (o *others) close(ctx context.Context) error {
	if o == nil {
		return nil
	}
	o.cancel()
	done := make(chan struct{})
	go func() {
		o.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("corosync has not let this daemon leave its group: %w", ctx.Err())
	}
}

// name is a host's name; empty if it is not known.
func (o *others) name(node uint32) string {
	if o == nil {
		return ""
	}
	o.mu.Lock()
	name := o.names[node]
	o.mu.Unlock()
	if name != "" {
		return name
	}
	for _, p := range o.members() {
		if p.Node == node {
			return p.Name
		}
	}
	return ""
}

// drains tells the others whether this host grants nothing new.
func (o *others) drains(yes bool) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.self.Draining = yes
	if p := o.met.Load(); p != nil {
		p.Announce(o.self)
	}
}

// figures are for metrics.
func (o *others) figures() (f metrics.Peers) {
	if o == nil {
		return f
	}
	for _, p := range o.members() {
		if p.Self {
			continue
		}
		f.Members++
		if !p.Silent.IsZero() {
			f.Silent++
		}
	}
	return f
}

// digest tells configurations apart in what has to be the same on all hosts.
func digest(c config.Config) string {
	sum := sha256.Sum256([]byte("1\x00" + c.Backend + "\x00" + c.Cluster.Lockspace))
	return hex.EncodeToString(sum[:8])
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

var errNotMet = fmt.Errorf("this daemon has just been started, and asks the others %v later", meetAfter)

// forRefusals is what the backend asks when a lock is held elsewhere.
type forRefusals struct{ *others }

func (o forRefusals) Holders(ctx context.Context, resource string) ([]locking.RemoteHolder, []uint32) {
	p := o.met.Load()
	if p == nil {
		return nil, nil
	}
	list, answered := p.Holders(ctx, resource)
	out := make([]locking.RemoteHolder, len(list))
	for i, h := range list {
		out[i] = locking.RemoteHolder{Holder: holderOf(h), Node: h.Node}
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

func (o forOperators) nameOf(node uint32, said string) string {
	if name := o.name(node); name != "" {
		return name
	}
	return said
}

func (o forOperators) Holdings(ctx context.Context) []control.PeerHoldings {
	return o.ask(ctx, func(peers.Holding) bool { return true })
}

func (o forOperators) Holders(ctx context.Context, name, id string) []control.PeerHoldings {
	return o.ask(ctx, func(h peers.Holding) bool { return h.Name == name || id != "" && h.Resource == id })
}

// ask asks the other hosts; also those that corosync knows and on which no vmlockd
// answers are there, with the reason.
func (o forOperators) ask(ctx context.Context, want func(peers.Holding) bool) (out []control.PeerHoldings) {
	var list []peers.NodeHoldings
	err := errNotMet
	if p := o.met.Load(); p != nil {
		list, err = p.Holdings(ctx)
	}
	self := o.selfNodes()
	seen := map[uint32]bool{}
	for _, n := range list {
		if n.Node == 0 || self[n.Node] {
			continue
		}
		seen[n.Node] = true
		answer := control.PeerHoldings{NodeID: n.Node, Name: o.nameOf(n.Node, n.Name)}
		if n.Err != nil {
			answer.Err = n.Err.Error()
		}
		for _, h := range n.Holdings {
			if want(h) {
				answer.Holders = append(answer.Holders, holderOf(h))
			}
		}
		out = append(out, answer)
	}
	for node, name := range o.absent(seen, self) {
		out = append(out, control.PeerHoldings{NodeID: node, Name: name, Err: notThere(err)})
	}
	return out
}

// Identify asks the other hosts which disk a path is there.
func (o forOperators) Identify(ctx context.Context, path string) (out []control.PeerDisk) {
	var list []peers.NodeDisk
	err := errNotMet
	if p := o.met.Load(); p != nil {
		list, err = p.Identify(ctx, path)
	}
	self := o.selfNodes()
	seen := map[uint32]bool{}
	for _, n := range list {
		if n.Node == 0 || self[n.Node] {
			continue
		}
		seen[n.Node] = true
		d := control.PeerDisk{NodeID: n.Node, Name: o.nameOf(n.Node, n.Name), Disk: control.Disk{
			Path: n.Disk.Path, Type: n.Disk.Type, Scope: n.Disk.Scope, Name: n.Disk.Name, Resource: n.Disk.Resource,
			ByPath: n.Disk.ByPath, Doubt: n.Disk.Doubt, Steps: n.Disk.Steps, Error: n.Disk.Error,
		}}
		if n.Err != nil {
			d.Err = n.Err.Error() + "; an earlier version of vmlockd does not know this question"
		}
		out = append(out, d)
	}
	for node, name := range o.absent(seen, self) {
		out = append(out, control.PeerDisk{NodeID: node, Name: name, Err: notThere(err)})
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
	for _, p := range o.members() {
		if p.Self {
			self[p.Node] = true
		}
	}
	return self
}

// absent are the other hosts that corosync knows and that have not been seen.
func (o forOperators) absent(seen, self map[uint32]bool) map[uint32]string {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := map[uint32]string{}
	for node, name := range o.names {
		if !seen[node] && !self[node] {
			list[node] = name
		}
	}
	return list
}

// notThere is why a host is absent.
func notThere(err error) string {
	if err != nil {
		return err.Error()
	}
	return "no vmlockd runs there, or it is not reached"
}
