package cluster

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld"
)

// State is what this host's lockspace does.
type State uint8

// The states of a lockspace.
const (
	Joining State = iota // this host is not in it yet
	Running
	Stopped // requests wait
	Dead    // only a reboot of this host helps
)

// Status is how the backend and its cluster are.
type Status struct {
	Lockspace  string // of the DLM
	State      State
	Reason     string    // what it waits for, unless it is running
	Since      time.Time // when it stopped; zero if it did not
	Kernel     dlm.Stats
	GivingBack int // releases that go on by themselves

	// Err is why dlm_controld said nothing; Cluster is empty then. It is nil too
	// where there is nobody to ask.
	Err     error
	Asked   bool // there is a dlm_controld to ask
	Cluster controld.Status
	Fencing *bool  // whether fencing is enabled; nil if that is not known
	Name    string // of the cluster; empty if that is not known
}

// clusterName is where dlm_controld puts the name of the cluster
// (dlm_controld/action.c).
const clusterName = "/sys/kernel/config/dlm/cluster/cluster_name"

// Status says how the backend is. It returns soon after ctx ends, and in about
// half a second when dlm_controld does not answer.
func (b *Backend) Status(ctx context.Context) Status {
	st := Status{Lockspace: b.name, GivingBack: b.givingBack(), Asked: b.controld != nil}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if b.controld != nil {
		a := b.asker.get(ctx)
		st.Cluster, st.Err = a.status, a.err
		if errors.Is(a.err, controld.ErrNoLockspace) {
			st.Err = nil // it did answer
		}
		st.Fencing = b.fencing.get(ctx, b, st.Err == nil)
		if text, err := os.ReadFile(clusterName); err == nil {
			st.Name = strings.TrimSpace(string(text))
		}
	}
	space, why := b.lockspace()
	if space == nil {
		st.State, st.Reason = Joining, b.notJoined(ctx, why).Error()
		return st
	}
	st.Kernel = space.Stats()
	st.State, st.Since, st.Reason = b.watch.state()
	return st
}

// state is what is known of the lockspace at this moment.
func (w *watch) state() (State, time.Time, string) {
	running, _ := w.runs()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.reason.cause == causeGone:
		return Dead, w.since, w.reason.text
	case !running:
		return Stopped, w.since, w.reason.text
	}
	return Running, time.Time{}, ""
}

// fencingAge is how long an answer about fencing is taken for true: it is a
// matter of configuration.
const fencingAge = 5 * time.Second

// fencing remembers whether fencing is enabled, so that dlm_controld, which
// answers one question at a time, is not kept busy by those who look often.
type fencing struct {
	mu      sync.Mutex // guards what follows
	at      time.Time
	enabled *bool
	flight  chan struct{} // nil unless a question is under way; closed when it is answered
}

// get waits for an answer until ctx ends, if the one it has is old and dlm_controld
// is alive.
func (f *fencing) get(ctx context.Context, b *Backend, alive bool) *bool {
	f.mu.Lock()
	if f.flight == nil && alive && time.Since(f.at) >= fencingAge {
		flight := make(chan struct{})
		if b.work.start(func() { f.ask(b, flight) }) {
			f.flight = flight
		}
	}
	flight, known := f.flight, f.enabled
	f.mu.Unlock()
	if flight == nil || known != nil {
		return known
	}
	select {
	case <-flight:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.enabled
	case <-ctx.Done():
		return nil
	}
}

func (f *fencing) ask(b *Backend, flight chan struct{}) {
	ctx, cancel := context.WithTimeout(b.ctx, askTimeout)
	defer cancel()
	c, err := b.controld.Config(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.flight = time.Now(), nil
	if err == nil {
		f.enabled = &c.EnableFencing
	}
	close(flight)
}
