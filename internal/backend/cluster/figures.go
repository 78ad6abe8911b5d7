package cluster

import "time"

// figuresAge is how old an answer of dlm_controld may be to be one of the
// Figures. While this host is in the lockspace one is asked for every askSeldom.
const figuresAge = 3 * askSeldom

// Figures is what this host knows about its lockspace, without asking anybody.
type Figures struct {
	Joined  bool          // this host is in the lockspace
	Running bool          // and the kernel takes requests, as found last
	Cause   string        // why not, in a word; empty if Running
	Stopped time.Duration // for how long not, if Joined

	// What dlm_controld has said last; only with Heard.
	Heard   bool // it has answered lately
	Quorate bool
	Members int // nodes that run dlm_controld now
	Missing int // nodes that were seen and do not
	Fencing int // nodes that must be fenced first

	InFlight  int           // writes in the kernel
	Queued    int           // writes that wait for a place
	Oldest    time.Duration // how long the oldest write has been in the kernel
	Unsettled int           // requests that were given up, and whose outcome is not known
	Releasing int           // releases that go on by themselves
	Unsaid    int           // locks whose holders other hosts cannot read yet
}

// Figures waits for no kernel and no other process.
func (b *Backend) Figures() Figures {
	now := time.Now()
	b.mu.Lock()
	space, why := b.space, b.why
	f := Figures{Joined: space != nil, Releasing: len(b.releasing)}
	b.mu.Unlock()
	f.Unsaid = b.publisher.waiting()
	if space == nil {
		f.Cause = causeOf(why)
	} else {
		b.watch.figures(&f, now)
		s := space.Stats()
		f.InFlight, f.Queued, f.Oldest, f.Unsettled = s.InFlight, s.Queued, s.OldestWrite, s.Unsettled
	}
	a := b.asker.lastAnswer()
	if a.at.IsZero() || a.err != nil || now.Sub(a.at) > figuresAge || b.controld == nil {
		return f
	}
	f.Heard, f.Quorate = true, a.status.Quorate
	for _, n := range a.status.Nodes {
		if n.Member {
			f.Members++
		} else {
			f.Missing++
		}
		if n.NeedFencing {
			f.Fencing++
		}
	}
	f.Fencing += len(a.status.Startup)
	return f
}

// causeOf is the word for why this host has not joined.
func causeOf(why error) string {
	if s, ok := why.(*stopped); ok {
		return s.Cause()
	}
	return causeJoining.String()
}

func (w *watch) figures(f *Figures, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.Running = !w.stopped && w.reason.cause != causeGone
	if !f.Running {
		f.Cause = w.reason.cause.String()
	}
	if w.stopped {
		f.Stopped = now.Sub(w.since)
	}
}

func (a *asker) lastAnswer() answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}
