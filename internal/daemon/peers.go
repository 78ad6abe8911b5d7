package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/config"
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

// groupName is the group of all lock daemons of a cluster. Those that are configured
// for another lockspace are in it too: that is how it is noticed.
const groupName = "vmlockd"

const (
	// namesPatience bounds how long corosync is asked for the names of the hosts, and
	// namesAgain is how often: a host may be added to corosync.conf at any time.
	namesPatience = 3 * time.Second
	namesAgain    = time.Minute
)

// others are the lock daemons of the cluster's other hosts. A nil *others knows
// nobody.
type others struct {
	corosync corosync.System
	log      *slog.Logger
	met      atomic.Pointer[peers.Peers] // nil before the group is joined
	cancel   context.CancelFunc
	work     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	self     peers.Info
	names    map[uint32]string // of the hosts, as corosync.conf has them; nil until it is known
	nameless error             // why names is nil
	unmet    error             // why met is nil
}

// lockTable is what the others may ask this daemon about, as soon as it is known.
type lockTable interface {
	holders() []locking.Holder
	holdersOf(resource string) []locking.Holder
}

// meetOthers makes this daemon a member of the group of those that use the same
// lockspace. Locks do not depend on it: without it, refusals and listings say less
// about other hosts.
func meetOthers(c config.Config, version string, table lockTable, disks *disks, log *slog.Logger) *others {
	if c.Backend != config.BackendCluster {
		return nil
	}
	host, _ := os.Hostname()
	self := peers.Info{
		Name: host, Version: version, Digest: digest(c), Rules: identity.Digest(c.Identity.List()), Guard: guardWord(c), Started: time.Now(),
	}
	return joinOthers(corosync.Host(), self, table, disks.forPeer, log)
}

// diskFinder says which disk a path is on this host, and returns soon after ctx ends.
type diskFinder func(ctx context.Context, path string) peers.Disk

func joinOthers(sys corosync.System, self peers.Info, table lockTable, find diskFinder, log *slog.Logger) *others {
	ctx, cancel := context.WithCancel(context.Background())
	o := &others{corosync: sys, log: log, cancel: cancel, self: self, nameless: errNotMet, unmet: errNotMet}
	o.work.Go(func() {
		select {
		case <-time.After(meetAfter):
		case <-ctx.Done():
			return
		}
		o.work.Go(func() { o.learnNames(ctx) })
		if err := o.meet(ctx, table, find); err != nil {
			o.mu.Lock()
			o.unmet = err
			o.mu.Unlock()
			log.Warn("the lock daemons of other hosts cannot be asked, so refusals and listings say less about them", "reason", err)
		}
	})
	return o
}

var errNotMet = fmt.Errorf("this daemon has just been started, and asks the others %v later", meetAfter)

// meet takes part in the group until ctx ends.
func (o *others) meet(ctx context.Context, table lockTable, find diskFinder) error {
	options := peers.GroupOptions()
	options.Background = true
	group, err := corosync.Join(ctx, o.corosync, groupName, options)
	if err != nil {
		return err
	}
	o.mu.Lock()
	p := peers.New(peers.Options{
		Group: group, Self: o.self, Log: o.log,
		Holdings: func() []peers.Holding { return holdings(table.holders()) },
		// Each refusal anywhere asks all hosts: what that costs must not grow with what they hold.
		Holders:  func(resource string) []peers.Holding { return holdings(table.holdersOf(resource)) },
		Identify: find,
	})
	o.met.Store(p)
	o.mu.Unlock()
	if err := p.Run(ctx); err != nil {
		o.log.Debug("could not leave the group of lock daemons in good order", "reason", err)
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

// learnNames asks corosync for the names of the hosts, again and again. What it said
// last counts while it says nothing.
func (o *others) learnNames(ctx context.Context) {
	cmap := corosync.NewCmap(o.corosync)
	pause := time.Second
	for {
		ask, cancel := context.WithTimeout(ctx, namesPatience)
		nodes, err := cmap.Nodes(ask)
		cancel()
		if err == nil && len(nodes) == 0 {
			err = errors.New("corosync.conf has no nodelist")
		}
		o.mu.Lock()
		if err == nil {
			o.names = make(map[uint32]string, len(nodes))
			for _, n := range nodes {
				o.names[n.ID] = n.Name
			}
			pause = namesAgain
		} else {
			o.nameless = err
			pause = min(2*pause, namesAgain)
		}
		o.mu.Unlock()
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

// guardWord is what others are told of the guard for people; what counts its guard
// tells theirs.
func guardWord(c config.Config) string {
	if !guarded(c) {
		return config.GuardOff
	}
	return c.Guard.Mode
}

// digest tells configurations apart in what has to be the same on all hosts.
func digest(c config.Config) string {
	g := c.Guard
	sum := sha256.Sum256(fmt.Appendf(nil, "2\x00%s\x00%s\x00%s\x00%v\x00%v", c.Backend, c.Cluster.Lockspace, g.Mode, g.Grace, g.HoldOff))
	return hex.EncodeToString(sum[:8])
}
