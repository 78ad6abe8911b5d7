package daemon

import (
	"context"
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

// What is in doubt is shown, also by the status, while the kernel takes its time over
// giving it back; who ends the daemon waits for that.
func TestDoubtWhileItIsSettled(t *testing.T) {
	j, _, err := journal.Open(t.TempDir(), "boot")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	slow := slowBackend{make(chan struct{}), make(chan struct{})}
	d := &doubter{backend: slow, journal: j, log: slog.New(slog.DiscardHandler)}
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
