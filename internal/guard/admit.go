package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// startPatience is how long a request waits for a guard that does not know enough
// to let anything be granted, as after its start or a change of the ring.
const startPatience = 5 * time.Second

// Refusal is why nothing new may be granted now.
type Refusal struct {
	cause, text string
	soon        bool // it is worth waiting for a moment
	// Node is what is held off for, and Left how long; 0 if it is about something else.
	Node uint32
	Left time.Duration // 0 also if no time is enough
}

func (r *Refusal) Error() string { return r.text }

// Cause is a word for metrics and logs: "hold_off", "guard_lost", "guard_start",
// "guard_unsafe" or "stopping".
func (r *Refusal) Cause() string { return r.cause }

// Admit says whether a lock that the DLM has granted may be told to who asked for
// it. It must be asked after the grant: only then is whoever vanished before known.
// A grant that is not admitted must be undone. It may be asked before the DLM is
// asked as well, to spare it the work. The error is a *Refusal, or that of ctx.
func (g *Guard) Admit(ctx context.Context) error {
	patience := time.NewTimer(startPatience)
	defer patience.Stop()
	for {
		g.mu.Lock()
		r := g.lockedRefusal()
		changed := g.changed
		g.mu.Unlock()
		if r == nil {
			return nil
		}
		if !r.soon {
			return r
		}
		select {
		case <-changed:
		case <-patience.C:
			return r
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", r, ctx.Err())
		}
	}
}

// lockedRefusal looks anew.
func (g *Guard) lockedRefusal() *Refusal {
	if g.closing {
		return &Refusal{cause: "stopping", text: "the lock daemon is stopping"}
	}
	switch mode := g.lockedMode(); {
	case g.fencing == nil:
		return &Refusal{cause: "guard_start", soon: true, text: "dlm_controld has not said yet whether lost hosts are fenced"}
	case mode == Fencing && !*g.fencing:
		return &Refusal{cause: "guard_unsafe", text: "guard.mode is \"fencing\", and dlm_controld does not fence: set enable_fencing=1 in dlm.conf, or another guard.mode"}
	case mode == Fencing:
		return nil
	}
	if g.tooFast != nil {
		return &Refusal{cause: "guard_unsafe", text: g.tooFast.Error()}
	}
	if g.failed != "" {
		return &Refusal{cause: "guard_unsafe", text: "the guard cannot note what must survive a restart: " + g.failed}
	}
	v := g.lockedView()
	g.ledger.look(v, g.timing, time.Now())
	why, lost := judge(v, g.timing)
	switch {
	case g.lost != "":
		return &Refusal{cause: "guard_lost", text: "this host has lost the cluster: " + g.lost}
	case lost:
		return &Refusal{cause: "guard_lost", text: "this host has lost the cluster: " + why}
	case why != "":
		return &Refusal{cause: "guard_start", soon: true, text: why}
	case !g.lockedSettled(v):
		return &Refusal{cause: "guard_start", soon: true, text: "the membership of the cluster has just changed"}
	}
	return g.lockedHoldOff(v)
}

// lockedSettled reports whether dlm_controld and corosync are of one mind about a
// ring that has been there for a while.
func (g *Guard) lockedSettled(v view) bool {
	return v.agreed(0) && g.provenRing == v.ring.ID.Seq && g.ledger.ring == v.ring.ID.Seq && v.at-g.ledger.since >= settleTime
}

// lockedHoldOff is the refusal for who has vanished.
func (g *Guard) lockedHoldOff(v view) *Refusal {
	list := g.ledger.list()
	if len(list) == 0 {
		for node := range g.ledger.unheard {
			// They need a moment to say it, or to be restarted.
			return &Refusal{cause: "hold_off", soon: true, Node: node, Left: g.ledger.heardBy - v.at, text: fmt.Sprintf(
				"the guard of %s has not said yet whether a node had vanished before this host came: at most %d seconds are left until nothing can be held by one",
				g.node(node), seconds(g.ledger.heardBy-v.at))}
		}
		return nil
	}
	var texts []string
	// Who is yet to be heard may know better what is a guess.
	r := &Refusal{cause: "hold_off", soon: len(g.ledger.unheard) > 0}
	for _, f := range list {
		r.soon = r.soon && f.Guess
		name := g.node(f.Node)
		if r.Node == 0 {
			r.Node = f.Node
		}
		switch {
		case !f.Promised || !v.majority:
			reason := "its guard had given no promise"
			if f.Promised {
				reason = "quorum is no majority in this cluster"
			}
			texts = append(texts, fmt.Sprintf("%s has vanished without leaving, and may use its disks for ever, as %s: nothing new is granted until it is back, or is off and "+
				"'vmlockctl confirm-dead %d' says so", name, reason, f.Node))
			r.Node, r.Left = f.Node, 0
		case f.Guess:
			texts = append(texts, fmt.Sprintf("%s was away when this host got into the cluster, and may still use its disks: nothing new is granted for %d seconds more, or until "+
				"'vmlockctl confirm-dead %d' says that it is off", name, seconds(f.Until-v.at), f.Node))
			r.Left = max(r.Left, f.Until-v.at)
		default:
			texts = append(texts, fmt.Sprintf("%s has vanished without leaving, and may still use its disks: nothing new is granted for %d seconds more, or until "+
				"'vmlockctl confirm-dead %d' says that it is off", name, seconds(f.Until-v.at), f.Node))
			r.Left = max(r.Left, f.Until-v.at)
		}
	}
	const most = 3
	if len(texts) > most {
		texts = append(texts[:most], fmt.Sprintf("and %d nodes more", len(list)-most))
	}
	r.text = strings.Join(texts, "; ")
	return r
}

func (g *Guard) node(id uint32) string {
	if g.o.Name != nil {
		if name := g.o.Name(id); name != "" {
			return fmt.Sprintf("node %d (%s)", id, name)
		}
	}
	return fmt.Sprintf("node %d", id)
}

func seconds(d time.Duration) int { return int(math.Ceil(max(d, 0).Seconds())) }

// Vanished is a node that is held off for.
type Vanished struct {
	Node     uint32
	Since    time.Duration // ago
	Left     time.Duration
	Forever  bool // no time is enough
	Promised bool // its guard had said that it would stop everything; if not, that is why
	Observed bool // it was seen to vanish; otherwise it was away when this host got into the cluster
}

// Stopped is a process that is stopped.
type Stopped struct {
	Frozen
	Stays bool // for an operator: it is not killed when its time is over
}

// Status is how the guard is.
type Status struct {
	Mode    Mode   // what it does; Auto while that is not known
	Lost    string // why this host has lost the cluster, "" if it has not
	Unsafe  string // why nothing new is granted whatever happens; "" if it is not so
	Refuses string // why nothing new is granted now; "" if it is
	Promise bool   // the others may count on this host
	Stopped []Stopped
	// NotStopped are owners that go on although this host has lost the cluster.
	NotStopped []Owner
	Vanished   []Vanished
	Timing     Timing
	Watchdog   string // "" if none is configured; else "open", "closed", or what is wrong
	// WatchdogStays are watchdogs that cannot be disarmed any more: what that means, and what to do.
	WatchdogStays []string
}

// Status says how the guard is, and returns at once.
func (g *Guard) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.o.Clock()
	s := Status{Mode: g.lockedMode(), Lost: g.lost, Promise: g.lockedPromise(), Timing: g.timing, Watchdog: g.dog.text(g.o.Dog != nil)}
	if r := g.lockedRefusal(); r != nil {
		s.Refuses = r.text
	}
	if g.dog.stays {
		s.Watchdog, s.WatchdogStays = "open", append(s.WatchdogStays, g.dog.err)
	}
	for _, l := range g.left {
		if l.stays {
			s.WatchdogStays = append(s.WatchdogStays, l.err)
		}
	}
	if s.Mode != Fencing {
		for _, err := range []error{g.tooFast, errorOf(g.failed)} {
			if err != nil && s.Unsafe == "" {
				s.Unsafe = err.Error()
			}
		}
	} else if g.fencing != nil && !*g.fencing {
		s.Unsafe = "guard.mode is \"fencing\", and dlm_controld does not fence"
	}
	for _, f := range g.frozen {
		s.Stopped = append(s.Stopped, Stopped{f.Frozen, f.wish == WishFreeze})
	}
	for _, f := range g.unopened {
		s.Stopped = append(s.Stopped, Stopped{f, g.wish(f.Owner) == WishFreeze})
	}
	if g.lost != "" {
		for _, o := range g.owners {
			key := ownerKey{o.PID, o.Start}
			if _, ok := g.unopened[key]; !ok && g.frozen[key] == nil {
				s.NotStopped = append(s.NotStopped, o)
			}
		}
	}
	slices.SortFunc(s.Stopped, func(a, b Stopped) int { return cmp.Compare(a.PID, b.PID) })
	for _, f := range g.ledger.list() {
		s.Vanished = append(s.Vanished, Vanished{
			Node: f.Node, Since: now - f.Since, Left: max(f.Until-now, 0), Forever: !f.Promised || !g.totem.Majority, Promised: f.Promised, Observed: !f.Guess,
		})
	}
	return s
}

func errorOf(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}
