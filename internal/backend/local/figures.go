package local

import "time"

// hangs is calls on one path whose callers have gone away.
type hangs struct {
	calls int
	since time.Time // when the first of them began
}

func (b *Backend) lockedHangs(path string, begun time.Time) {
	h := b.hanging[path]
	if h.calls++; h.calls == 1 || begun.Before(h.since) {
		h.since = begun
	}
	b.hanging[path] = h
}

func (b *Backend) lockedReturned(path string) {
	h := b.hanging[path]
	if h.calls--; h.calls == 0 {
		delete(b.hanging, path)
	} else {
		b.hanging[path] = h
	}
}

// Figures is what a Backend knows of the system calls on files.
type Figures struct {
	InFlight  int           // calls under way, but for releases
	Unsettled int           // calls and releases whose callers have gone away
	Oldest    time.Duration // how long ago the first such call began on the path that has hung longest; 0 if there is none
}

// Figures waits for no file.
func (b *Backend) Figures() Figures {
	now := time.Now()
	f := Figures{InFlight: len(b.slots), Unsettled: b.Unsettled()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.hanging {
		f.Oldest = max(f.Oldest, now.Sub(h.since))
	}
	return f
}
