package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// patience is how long a request waits for a lockspace that is stopped, from
	// the stop or from its own beginning, whichever is later: a recovery without
	// trouble takes less. With lookSeldom and lookOften, which is how long it may
	// take to notice the stop and the end of patience, it keeps a refusal below one
	// second.
	patience = 500 * time.Millisecond
	// otherPatience is the same when dlm_controld has said that it is no recovery
	// without trouble.
	otherPatience = 300 * time.Millisecond
	// littlePatience is the same for a request that comes when the lockspace has
	// been stopped for longer than that, and not for a recovery. It is enough for a
	// new answer of dlm_controld.
	littlePatience = 250 * time.Millisecond
	// lookOften is how often the kernel is asked whether the lockspace runs while
	// it is stopped or a request is under way. A look costs about a microsecond.
	lookOften = 50 * time.Millisecond
	// lookSeldom is how often it is asked otherwise. Nobody is woken for a request
	// that finds the lockspace running.
	lookSeldom = 150 * time.Millisecond
	// askSeldom is how often dlm_controld is asked while no request waits for the
	// answer: it may go without the kernel being told.
	askSeldom = 5 * time.Second
	// silence is how long dlm_controld may be silent before that is the reason,
	// once it has given one.
	silence = 3 * time.Second
	// longRecovery is how long a recovery goes on before it is said that it may never end.
	// That of 10,000 locks takes seconds, and what gets lost on the way the kernel sends again
	// after five (recover_timer in fs/dlm/config.c).
	longRecovery = 20 * time.Second
	// tellUnheard is how long dlm_controld's first answer is waited for before a stop is logged without.
	tellUnheard = 2 * askTimeout
	// mostLogged bounds how many locks are named in the log, a line for each.
	mostLogged = 200
)

// recovering is what a stop is until dlm_controld has said more.
var recovering = reason{causeRecovering, "the DLM is recovering from a change of the cluster's membership"}

// watch knows whether the lockspace runs, and if not, why. One goroutine looks;
// requests register while they are under way, and are given up when the
// lockspace has been stopped for too long.
type watch struct {
	look    func() (dlm.RecoverStatus, error) // how far the kernel is; returns at once
	whom    func() uint32                     // the node that the kernel's recovery waits for, 0 if it does not say; returns at once
	lost    func() bool                       // whether the guard says that this host has lost the cluster; returns at once
	asker   *asker
	holders func() []locking.Holder
	log     *slog.Logger
	name    string

	kick chan struct{} // has room for one: look now

	mu       sync.Mutex // guards what follows; never held while anybody is asked
	stopped  bool       // as found last
	since    time.Time  // of the stop
	reason   reason     // why it is stopped, as far as known; causeGone also if the kernel does not know it
	heard    time.Time  // of the last answer of dlm_controld since the stop
	asking   bool
	asked    time.Time     // when the last question began
	recovers time.Time     // since when nothing is waited for that has a name, as long as nobody came or went; zero if something is
	ring     uint64        // the membership of the cluster at that time
	changed  chan struct{} // closed, and made anew, when it runs again
	requests map[*request]struct{}

	told      cause // what the log was told last of this stop
	isTold    bool
	toldLong  bool   // it was told that this recovery is a long one
	toldHeld  bool   // it was told who holds what
	toldEarly bool   // it was told that this host must be rebooted before it had joined
	lookErr   string // what the log was told last of looking
}

func newWatch(name string, look func() (dlm.RecoverStatus, error), whom func() uint32, lost func() bool, a *asker, holders func() []locking.Holder, log *slog.Logger) *watch {
	if holders == nil {
		holders = func() []locking.Holder { return nil }
	}
	return &watch{
		look: look, whom: whom, lost: lost, asker: a, holders: holders, log: log, name: name, kick: make(chan struct{}, 1),
		reason: recovering, asked: time.Now(), changed: make(chan struct{}), requests: map[*request]struct{}{},
	}
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-timer.C:
		}
		timer.Reset(w.turn(ctx))
	}
}

// turn looks once, does what follows from it, and returns when to look again.
func (w *watch) turn(ctx context.Context) time.Duration {
	running := w.takes()
	now := time.Now()
	w.mu.Lock()
	running = running && w.reason.cause != causeGone
	switch {
	case !running:
		w.lockedStop(now)
	case w.stopped:
		w.stopped = false
		close(w.changed)
		w.changed = make(chan struct{})
		if w.isTold {
			w.log.Info("the DLM lockspace runs again", "event", "lockspace-running", "dlm", w.name, "cause", w.told.String(), "after", now.Sub(w.since).Round(time.Millisecond))
		}
		w.reason = recovering // of the next stop, until more is known
	}
	age := askSeldom
	if w.stopped && (len(w.requests) > 0 || !w.isTold) {
		age = answerAge
	}
	if now.Sub(w.asked) >= age && !w.asking {
		w.asking, w.asked = true, now
		if !w.asker.work.start(func() { w.ask(ctx) }) {
			w.asking = false
		}
	}
	var tell func()
	if w.stopped {
		tell = w.lockedTell(now)
		for r := range w.requests {
			if w.lockedTooLong(r, now) {
				r.cancel(&stopped{w.reason})
			}
		}
	}
	next := lookSeldom
	if w.stopped || len(w.requests) > 0 {
		next = lookOften
	}
	w.mu.Unlock()
	if tell != nil {
		tell()
	}
	return next
}

// lockedStop notes that the lockspace does not run.
func (w *watch) lockedStop(now time.Time) {
	if !w.stopped {
		w.stopped, w.since, w.isTold = true, now, false
		w.asked, w.heard = time.Time{}, time.Time{} // ask at once
		w.recovers, w.toldLong = time.Time{}, false
	}
}

// takes asks the kernel. If it cannot tell, the request finds out.
func (w *watch) takes() bool {
	st, err := w.look()
	if err == nil {
		return st.Running()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if text := err.Error(); text != w.lookErr {
		w.lookErr = text
		w.log.Warn("the kernel does not say whether the DLM lockspace runs; while it does not, refusals take longer and name no reason", "dlm", w.name, "reason", err)
	}
	return true
}

// runs says whether a request may be written now. If not, changed is closed when
// that is over.
func (w *watch) runs() (running bool, changed <-chan struct{}) {
	// In this order: should it run again between the two, the channel is closed.
	w.mu.Lock()
	changed = w.changed
	w.mu.Unlock()
	running = w.takes()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !running || w.reason.cause == causeGone {
		w.lockedStop(time.Now()) // so that run will close the channel, even if it never sees the stop
		w.wake()
		return false, changed
	}
	return true, nil
}

// ask finds out why the lockspace is stopped.
func (w *watch) ask(ctx context.Context) {
	a := w.asker.get(ctx)
	if ctx.Err() != nil {
		return
	}
	r, held := explain(a, time.Now(), nil), []locking.Holder(nil)
	if r.cause == causeGone {
		held = w.holders()
		r = explain(a, time.Now(), held)
	}
	at := w.where()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asking = false
	if r.cause == causeSilent && a.at.Sub(w.heard) < silence {
		return // a host under load may miss one answer
	}
	if r.cause != causeSilent {
		w.heard = a.at
	}
	if w.stopped || r.cause == causeGone {
		w.reason = w.lockedLong(r, a, at)
		if len(held) > 0 && w.isTold && w.told == causeGone && !w.toldHeld {
			w.isTold = false // this process has taken them back only now
		}
		w.wake()
	}
}

// place is where a recovery stands on this host.
type place struct {
	lost  bool   // this host has lost the cluster: nobody's messages come
	begun bool   // dlm_controld has told the kernel to go on, and it has not come to the end
	asks  uint32 // whom the kernel waits for then; 0 if that is not known
}

// where asks the kernel. What cannot be known is a recovery that has begun.
func (w *watch) where() place {
	if st, err := w.look(); err == nil && st.Stopped() {
		return place{lost: w.lost()}
	}
	return place{begun: true, asks: w.whom()}
}

// mustReboot is what is to be done where dlm_controld waits for messages.
const mustReboot = " although corosync forms no new membership and dlm_controld answers on every host, this host must be rebooted, at the same time as all others that wait for messages"

// goesOn says what must be the matter if a recovery does not end.
func (p place) goesOn() string {
	switch {
	case p.lost:
		return ": corosync delivers no messages to this host (see its log)"
	case !p.begun:
		// dlm_controld 4.2.0 may refuse its own message for a change of the lockspace, or another host's, and waits for it then for
		// ever (docs/operations.md). It answers all questions meanwhile. What it has not finished makes it refuse further messages, and
		// those of it be refused: so all that have something unfinished must be away at the same time.
		return ": dlm_controld here waits for messages (see dlm_tool ls -n). If that goes on" + mustReboot
	case p.asks == 0:
		return ": if that goes on, the kernel of a host hangs in it (see dmesg and dlm_tool ls on each), and that host must be rebooted"
	}
	return fmt.Sprintf(", and the kernel here waits for node %d: if that goes on, and vmlockctl status there knows no reason, the kernel of a host hangs in it (see dmesg and dlm_tool ls on each), and that host must be rebooted", p.asks)
}

// lockedLong is r with what is to be said of a recovery that does not end. One host waits for another one, and no software of
// theirs does anything about it.
func (w *watch) lockedLong(r reason, a answer, at place) reason {
	now := a.at
	switch {
	case r != recovering:
		w.recovers, w.toldLong = time.Time{}, false
	case at.lost:
		// Its own message has not come back either, and may when corosync goes on.
		w.recovers, w.toldLong = time.Time{}, false
		r.text += at.goesOn()
	case w.recovers.IsZero() || w.ring != a.status.ClusterRing:
		w.recovers, w.ring, w.toldLong = now, a.status.ClusterRing, false
	case now.Sub(w.recovers) >= longRecovery:
		r.text += fmt.Sprintf(", for %v now%s", now.Sub(w.recovers).Round(time.Second), at.goesOn())
		if !w.toldLong {
			w.toldLong, w.isTold = true, false
		}
	}
	return r
}

// lockedTooLong says whether r has waited for long enough.
func (w *watch) lockedTooLong(r *request, now time.Time) bool {
	if w.reason.cause == causeGone {
		return true // it never comes back
	}
	limit := patience
	if w.reason.cause != causeRecovering {
		limit = otherPatience
	}
	switch {
	case !r.waits || !r.begun.After(w.since):
		return now.Sub(w.since) >= limit
	case w.reason.cause != causeRecovering && r.begun.Sub(w.since) >= limit:
		return now.Sub(r.begun) >= littlePatience
	}
	return now.Sub(r.begun) >= limit
}

// lockedTell returns what is to be logged about a stop that lasts, or again when
// its cause is another one, and nil if there is nothing.
func (w *watch) lockedTell(now time.Time) func() {
	if w.isTold && w.told == w.reason.cause {
		return nil
	}
	if w.reason.cause != causeGone && (now.Sub(w.since) < patience || w.heard.IsZero() && w.asking && now.Sub(w.since) < tellUnheard) {
		return nil // the answer may say more
	}
	w.isTold, w.told = true, w.reason.cause
	text, cause, since := w.reason.text, w.reason.cause, w.since.UTC().Format(time.RFC3339)
	switch cause {
	case causeGone:
		return func() { w.tellGone(text) }
	case causeQuorum:
		return func() {
			w.log.Warn("the DLM lockspace is stopped as quorum is lost; locks are refused until it runs again", "event", "quorum-lost", "dlm", w.name,
				"reason", text, "since", since)
		}
	}
	return func() {
		w.log.Warn("the DLM lockspace is stopped; locks are refused until it runs again", "event", "lockspace-stopped", "dlm", w.name,
			"cause", cause.String(), "reason", text, "since", since)
	}
}

// heldUntold reports whether there is more to say than tellGone did.
func (w *watch) heldUntold() bool {
	w.mu.Lock()
	told := w.toldHeld
	w.mu.Unlock()
	return !told && len(w.holders()) > 0
}

// tellGone logs that only a reboot helps, and what is held until then.
func (w *watch) tellGone(text string) {
	held := w.holders()
	w.mu.Lock()
	w.toldHeld = len(held) > 0
	w.mu.Unlock()
	if len(held) == 0 {
		w.log.Error("this host must be rebooted before it can use the DLM again", "event", "reboot-needed", "dlm", w.name, "reason", text)
		return
	}
	w.log.Error("this host must be rebooted: it can neither get nor give back locks, and no other host can have those it holds",
		"event", "reboot-needed", "dlm", w.name, "reason", text, "locks", len(held))
	for i, h := range held {
		if i == mostLogged {
			w.log.Error(fmt.Sprintf("and %d locks more", len(held)-i), "dlm", w.name)
			break
		}
		w.log.Error("held until this host is rebooted", "event", "held-until-reboot", "holder", h.String(), "lockspace", h.Ref.Lockspace, "resource", h.Ref.Name)
	}
}

// wake makes run look now.
func (w *watch) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// request is a request that is under way. Its context ends with a *stopped as
// its cause when the lockspace has been stopped for too long.
type request struct {
	w      *watch
	ctx    context.Context
	cancel context.CancelCauseFunc
	begun  time.Time
	waits  bool // its own time counts from its beginning, and not from the stop
}

// begin registers a request, which must end. One that waits has patience of its
// own with a lockspace that was stopped long ago.
func (w *watch) begin(ctx context.Context, waits bool) *request {
	r := &request{w: w, begun: time.Now(), waits: waits}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests[r] = struct{}{}
	return r
}

func (r *request) end() {
	r.w.mu.Lock()
	delete(r.w.requests, r)
	r.w.mu.Unlock()
	r.cancel(nil)
}

// why is the error of a request whose context has ended: the *stopped, or the
// error of the context it was made with.
func (r *request) why() error { return context.Cause(r.ctx) }

// waitRunning returns nil once the lockspace runs, or why when that takes too long.
func (r *request) waitRunning() error {
	for {
		running, changed := r.w.runs()
		if running {
			return nil
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return r.why()
		}
	}
}
