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

// explainer knows whether there are locks that a record explains and that the backend
// has not been told of yet. *locking.Manager is one.
type explainer interface {
	AllTakenBack() error
}

// doubter knows whether the journal was damaged, so that there may be locks that
// nothing explains, and ends that when an operator says so.
type doubter struct {
	backend unexplained
	locks   explainer
	journal *journal.Journal
	orphans bool // of what Unexplained does not list there may be more
	log     *slog.Logger

	settling sync.Mutex // held while Settle works, which may take a minute

	mu     sync.Mutex // guards damage, for a moment only
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
	d.settling.Lock()
	defer d.settling.Unlock()
	return d.unknown.Load()
}

// Doubt is nil if there is none. Of a Settle under way it shows what is left.
func (d *doubter) Doubt() *control.Doubt {
	d.mu.Lock()
	damage := d.damage
	d.mu.Unlock()
	if damage == "" {
		return nil
	}
	return &control.Doubt{Damage: damage, Unexplained: d.backend.Unexplained(), Orphans: d.orphans}
}

// Settle releases what nothing explains, and then remembers that the doubt is over.
// As long as a lock that a record explains is not taken back it releases nothing: the
// backend would take that for one of them.
func (d *doubter) Settle(ctx context.Context, by control.Caller, why string) (released int, err error) {
	d.settling.Lock()
	defer d.settling.Unlock()
	if !d.unknown.Load() {
		return 0, nil
	}
	// Nil once is nil for good, so it need not be held while the backend works.
	if err := d.locks.AllTakenBack(); err != nil {
		return 0, err
	}
	if released, err = d.backend.DropOthers(ctx); err != nil {
		return released, err
	}
	if err := d.journal.Settled(); err != nil {
		return released, err
	}
	d.mu.Lock()
	d.damage = ""
	d.unknown.Store(false)
	d.mu.Unlock()
	d.log.Warn("what a damaged journal may have said was given back, as an operator says that nothing uses it",
		"event", "doubt-settled", "released", released, "user", by.Login, "why", why)
	return released, nil
}

// warnings are those of the status that are about locks from before a start.
func (i *instance) warnings() []control.Warning {
	list := append(i.doubt.warnings(), i.reminder.warnings()...)
	if why := i.locks.NotYet(); why != nil {
		list = append(list, control.Warning{Code: control.WarnNotYet, Message: why.Error() + ". They stay held, and their disks are refused until then"})
	}
	return list
}

func (d *doubter) warnings() []control.Warning {
	if !d.unknown.Load() { // a Settle under way is not waited for
		return nil
	}
	return []control.Warning{{Code: control.WarnDoubt, Message: "the journal was damaged: what it may have said stays locked; 'vmlockctl settle' shows it"}}
}
