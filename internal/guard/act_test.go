package guard

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"
)

// steps is what a guard did, in order.
type steps struct{ list []string }

// The log.
func (s *steps) Enabled(context.Context, slog.Level) bool { return true }
func (s *steps) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *steps) WithGroup(string) slog.Handler            { return s }
func (s *steps) Handle(context.Context, slog.Record) error {
	s.list = append(s.list, "log")
	return nil
}

// The store.
func (s *steps) Load() (*Saved, error) { return nil, nil }
func (s *steps) Save(Saved) error      { s.list = append(s.list, "save"); return nil }

// The processes.
func (s *steps) Open(pid int32, _ uint64) (Process, error) {
	if pid == 3 {
		return nil, errors.New("no descriptor is left")
	}
	return stubborn{steps: s, fails: pid == 1}, nil
}

type stubborn struct {
	Process
	*steps
	fails bool
}

func (p stubborn) Stop() error {
	p.list = append(p.list, "stop")
	if p.fails {
		return errors.New("it cannot be stopped")
	}
	return nil
}

// TestStoppedBeforeTheLogIsTold: whatever there is to say, of those too that cannot be
// stopped, comes when the others are.
func TestStoppedBeforeTheLogIsTold(t *testing.T) {
	s := &steps{}
	g, err := New(Options{Clock: func() time.Duration { return time.Hour }, Processes: s, Store: s, Log: slog.New(s)})
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// 3 cannot be opened, 1 cannot be stopped, and nobody knows the process of 4.
	g.owners = []Owner{{PID: 4}, {PID: 3, Start: 1}, {PID: 1, Start: 1}, {PID: 2, Start: 1}}
	g.lockedFreeze(view{at: time.Hour})
	want := []string{"save", "stop", "stop", "log", "log", "log", "log", "log"}
	if !slices.Equal(s.list, want) {
		t.Errorf("%v, want %v", s.list, want)
	}
}
