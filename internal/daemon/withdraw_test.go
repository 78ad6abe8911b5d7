package daemon

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/guard"
)

// silent is a corosync group that delivers nothing, and a dlm_controld that says only
// whether it fences.
type silent struct {
	events chan corosync.Event
	fences bool
}

func (s silent) Events() <-chan corosync.Event { return s.events }

func (s silent) Send(context.Context, []byte) error { return nil }

func (s silent) Close(context.Context) error { return nil }

func (s silent) Status(context.Context) (controld.Status, error) {
	return controld.Status{}, controld.ErrNoAnswer
}

func (s silent) Known(context.Context, string) error { return nil }

func (s silent) Config(context.Context) (controld.Config, error) {
	return controld.Config{EnableFencing: s.fences}, nil
}

// A promise that nobody may have heard withdrawn is said to stand, and what is to be done; and
// the end of the daemon does not wait for ever. Nothing of that is so where others fence.
func TestWithdraw(t *testing.T) {
	for name, fences := range map[string]bool{"nobody hears it": false, "others fence": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fakeclock.Test(t, func(t *testing.T) {
				begun := time.Now()
				ring := corosync.Ring{ID: corosync.RingID{Node: 1, Seq: 1}, Members: []uint32{1, 2, 3}, Quorate: true}
				s := silent{make(chan corosync.Event), fences}
				o := guard.Options{
					Lockspace: "vms", Timing: guard.Timing{Grace: 10 * time.Second, HoldOff: time.Minute}, Clock: func() time.Duration { return time.Since(begun) },
					Node: func() (uint32, error) { return 1, nil }, Group: s, Ring: func() (corosync.Ring, error) { return ring, nil },
					Totem: func(context.Context) (guard.Totem, error) {
						return guard.Totem{Token: time.Second, Consensus: 2 * time.Second, Majority: true, Nodes: ring.Members}, nil
					},
					Members: func() ([]uint32, error) { return ring.Members, nil }, Controld: s,
					// One whom nobody can stop.
					Owners: func() []guard.Owner { return []guard.Owner{{Name: "web"}} }, Processes: guard.System{},
					Store: guard.File{Path: filepath.Join(dir, guardFile), Boot: "b"},
				}
				var log words
				g := &guarding{log: slog.New(slog.NewTextHandler(&log, nil)), dog: &guard.Device{}}
				if !g.withdraw() {
					t.Error("nothing was promised")
				}
				var err error
				if g.Guard, err = guard.New(o); err != nil {
					t.Fatal(err)
				}
				g.run()
				for g.Status().Mode == guard.Auto {
					fakeclock.Wait()
				}
				asked := time.Now()
				heard := g.withdraw()
				g.cancel()
				<-g.done
				if took := time.Since(asked); heard != fences || took > time.Minute || fences && took > time.Second {
					t.Errorf("heard: %v, after %v", heard, took)
				}
				if text := log.String(); strings.Contains(text, "start vmlockd again at once") == fences || strings.Contains(text, "left armed") == fences {
					t.Errorf("the log: %s", text)
				}
			})
		})
	}
}
