package daemon

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/journal"
)

// slowBackend takes its time to give back what nothing explains.
type slowBackend struct{ begun, end chan struct{} }

func (s slowBackend) Unexplained() []string { return []string{"/a"} }

func (s slowBackend) DropOthers(context.Context) (int, error) {
	close(s.begun)
	<-s.end
	return 1, nil
}

// takenBack is a lock table of which that is why not all is taken back.
type takenBack struct{ why error }

func (t takenBack) AllTakenBack() error { return t.why }

// purging is a backend that must not be asked to give anything back.
type purging struct{ t *testing.T }

func (purging) Unexplained() []string { return []string{} }

func (p purging) DropOthers(context.Context) (int, error) {
	p.t.Error("what records explain was released too")
	return 1, nil
}

// Nothing is given back, and the doubt stays, also for the next daemon, while something
// that a record explains is not taken back.
func TestSettledTooEarly(t *testing.T) {
	dir := t.TempDir()
	j, _, err := journal.Open(dir, "boot")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Suspect("torn"); err != nil {
		t.Fatal(err)
	}
	why := errors.New("the lockspace is stopped")
	d := &doubter{backend: purging{t}, locks: takenBack{why}, journal: j, log: slog.New(slog.DiscardHandler)}
	d.suspect("torn")
	if n, err := d.Settle(t.Context(), control.Caller{}, "x"); n != 0 || err != why {
		t.Errorf("settled: %d, %v", n, err)
	}
	if d.Doubt() == nil || !d.inDoubt() {
		t.Error("the doubt is over")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, found, err := journal.Open(dir, "boot")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if found.Damage == nil || !found.Damage.Unknown {
		t.Errorf("the next daemon is told of %+v", found.Damage)
	}
}

// What is in doubt is shown, also by the status, while the kernel takes its time over
// giving it back; who ends the daemon waits for that.
func TestDoubtWhileItIsSettled(t *testing.T) {
	j, _, err := journal.Open(t.TempDir(), "boot")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	slow := slowBackend{make(chan struct{}), make(chan struct{})}
	d := &doubter{backend: slow, locks: takenBack{nil}, journal: j, log: slog.New(slog.DiscardHandler)}
	d.suspect("torn")
	settled := make(chan error, 1)
	go func() {
		_, err := d.Settle(context.Background(), control.Caller{}, "x")
		settled <- err
	}()
	<-slow.begun
	if doubt, list := d.Doubt(), d.warnings(); doubt == nil || doubt.Damage != "torn" || len(list) != 1 || list[0].Code != control.WarnDoubt {
		t.Errorf("meanwhile: %+v, warnings %v", doubt, list)
	}
	ending := make(chan bool, 1)
	go func() { ending <- d.inDoubt() }()
	close(slow.end)
	if err := <-settled; err != nil {
		t.Fatal(err)
	}
	if <-ending || d.Doubt() != nil || len(d.warnings()) != 0 {
		t.Errorf("afterwards: %+v, warnings %v", d.Doubt(), d.warnings())
	}
}
