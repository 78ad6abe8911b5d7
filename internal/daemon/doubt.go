package daemon

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/journal"
)

// unexplained is the part of a backend that has what no record explains.
type unexplained interface {
	Unexplained() []string
	DropOthers(ctx context.Context) (int, error)
}

// doubter knows whether the journal was damaged, so that there may be locks that
// nothing explains, and ends that when an operator says so.
type doubter struct {
	backend unexplained
	journal *journal.Journal
	orphans bool // of what Unexplained does not list there may be more
	log     *slog.Logger

	mu     sync.Mutex // guards damage; held while Settle works
	damage string     // empty if there is no doubt

	unknown atomic.Bool // damage is not empty, for who cannot wait
}

// suspect begins the doubt.
func (d *doubter) suspect(damage string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.damage = damage
	d.unknown.Store(true)
}

// inDoubt reports whether there may be such locks. It waits for a Settle under way.
func (d *doubter) inDoubt() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.damage != ""
}

// Doubt is nil if there is none.
func (d *doubter) Doubt() *control.Doubt {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.damage == "" {
		return nil
	}
	return &control.Doubt{Damage: d.damage, Unexplained: d.backend.Unexplained(), Orphans: d.orphans}
}

// Settle releases what nothing explains, and then remembers that the doubt is over.
func (d *doubter) Settle(ctx context.Context, by control.Caller, why string) (released int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.damage == "" {
		return 0, nil
	}
	if released, err = d.backend.DropOthers(ctx); err != nil {
		return released, err
	}
	if err := d.journal.Settled(); err != nil {
		return released, err
	}
	d.damage = ""
	d.unknown.Store(false)
	d.log.Warn("what a damaged journal may have said was given back, as an operator says that nothing uses it",
		"event", "doubt-settled", "released", released, "user", by.Login, "why", why)
	return released, nil
}

// warnings are for the status.
// warnings are those of the status that are about locks from before a start.
func (i *instance) warnings() []control.Warning {
	list := i.doubt.warnings()
	if why := i.locks.NotYet(); why != nil {
		list = append(list, control.Warning{Code: control.WarnNotYet, Message: why.Error() + ". They stay held, and their disks are refused until then"})
	}
	return list
}

func (d *doubter) warnings() []control.Warning {
	if !d.inDoubt() {
		return nil
	}
	return []control.Warning{{Code: control.WarnDoubt, Message: "the journal was damaged: what it may have said stays locked; 'vmlockctl settle' shows it"}}
}
