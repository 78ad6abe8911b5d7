package guard

import "errors"

// dogState is what the guard knows of its watchdog.
type dogState struct {
	open bool
	left bool   // an earlier daemon has left it open, so it runs down
	err  string // what the log was told last
	// stays: err is that it cannot be disarmed any more.
	stays bool
}

func (d dogState) text(configured bool) string {
	switch {
	case !configured:
		return ""
	case d.err != "":
		return d.err
	case d.open:
		return "open"
	}
	return "closed"
}

// Granted is told that a process has got a lock, which Owners has, before that process is told: from then on it may write, and the others
// count on the watchdog. Without one, or where the lock is on what only this host can use, it does nothing.
func (g *Guard) Granted() {
	if g.o.Dog == nil {
		return
	}
	g.mu.Lock()
	g.grants++
	open := g.dog.open
	g.mu.Unlock()
	if open || len(g.o.Owners()) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lockedDog(g.lockedView(), g.lockedMode(), true)
}

// lockedDog feeds the watchdog while there is something to protect and the promise
// is kept, and disarms it when there is nothing any more. There is something if granted says so, whatever is known of owners.
func (g *Guard) lockedDog(v view, mode Mode, granted bool) {
	idle := len(g.owners) == 0 && len(g.frozen) == 0 && !granted
	// Who counts on a watchdog that an earlier daemon has left armed has heard of this one before it is disarmed.
	free := idle || g.introduced || g.lockedFenced()
	g.lockedLeft(v, free)
	if g.o.Dog == nil {
		return
	}
	// While the mode is not known the worst is to be expected.
	if idle || mode == Fencing && (free || !g.dog.left && !g.dog.open) {
		g.lockedDisarm()
		return
	}
	if !g.lockedKept(v) {
		return // the host is reset, unless it can be kept yet
	}
	err := g.o.Dog.Feed()
	if err == nil {
		was := g.dog.open
		if g.dog.open, g.dog.left = true, false; !g.dog.stays {
			g.dog.err = ""
		}
		if !was {
			g.lockedDogStays()
			g.lockedDogNews("watchdog is armed: it resets this host if vmlockd does not keep its promise")
		}
		return
	}
	if text := err.Error(); g.dog.err != text {
		g.dog.err = text
		g.log.Error("the watchdog cannot be used; this host is not reset if vmlockd hangs", "event", "guard-failed", "reason", err)
	}
}

// lockedFenced reports whether dlm_controld is known to fence: then nobody counts on a watchdog.
func (g *Guard) lockedFenced() bool { return g.fencing != nil && *g.fencing }

func (g *Guard) lockedDisarm() {
	path := ""
	if d, ok := g.o.Dog.(*Device); ok {
		path = d.Path
	}
	if g.dog.left {
		// The earlier daemon did not live to disarm it. Until it could be opened it runs down, and is not forgotten.
		if err := g.o.Dog.Feed(); err != nil {
			g.lockedNotDisarmed(&g.dog.err, path, err)
			return
		}
		g.dog.open, g.dog.left = true, false
	}
	if !g.dog.open {
		g.dog = dogState{}
		return
	}
	if err := g.o.Dog.Disarm(); err != nil {
		_ = g.o.Dog.Feed() // nothing is to be reset for that while vmlockd runs
		g.dog.stays = errors.Is(err, ErrStays)
		g.lockedNotDisarmed(&g.dog.err, path, err)
		return
	}
	g.dog = dogState{}
	g.lockedDogNews("watchdog is disarmed")
}

// lockedDogStays has people told of a watchdog that runs and can never be stopped again.
func (g *Guard) lockedDogStays() {
	if d, ok := g.o.Dog.(*Device); ok {
		if err := d.Stays(); err != nil {
			g.dog.stays = true
			g.lockedNotDisarmed(&g.dog.err, d.Path, err)
		}
	}
}

// lockedNotDisarmed says once why a watchdog is not disarmed.
func (g *Guard) lockedNotDisarmed(said *string, path string, err error) {
	if *said == err.Error() {
		return
	}
	*said = err.Error()
	if errors.Is(err, ErrStays) {
		g.log.Error("a watchdog cannot be disarmed", "event", "guard-watchdog-stays", "device", path, "reason", err)
		return
	}
	g.log.Error("the watchdog "+path+" cannot be disarmed: this host may be reset", "event", "guard-failed", "reason", err)
}

// lockedDogNews notes at once whether the watchdog is armed, as the next daemon has to feed or disarm it
// also if this one is killed now, and tells the others, who count on it.
func (g *Guard) lockedDogNews(text string) {
	g.lockedSave()
	g.news()
	g.log.Info(text, "event", "guard-watchdog")
}

// lockedKept reports whether the promise is kept at this moment. Where nothing is stopped it was an earlier guard's, which has left
// its watchdog armed: this host has to have the cluster then.
func (g *Guard) lockedKept(v view) bool {
	lost := g.lost != ""
	if g.lockedMode() == Fencing {
		_, lost = judge(v, g.timing)
	}
	if !lost || g.timing.Known() && v.at <= v.proven+g.timing.Lease()+stopTime {
		return true
	}
	for _, o := range g.owners {
		if f := g.frozen[ownerKey{o.PID, o.Start}]; f == nil || !f.stopped {
			return false
		}
	}
	for _, f := range g.frozen {
		if !f.stopped || f.wish != WishFreeze && v.at >= f.Deadline+killTime {
			return false
		}
	}
	return true
}

// Disarm closes the watchdogs before the daemon stops, and says it once more if one cannot be. It is after Run.
func (g *Guard) Disarm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.o.Dog != nil {
		g.dog.err = ""
		g.lockedDisarm()
	}
	for _, l := range g.left {
		l.err = ""
	}
	g.lockedDisarmLeft()
}
