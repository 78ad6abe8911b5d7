package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

const (
	// vmAgain is between two attempts to start a virtual machine, and vmRest between two turns of one: somebody else who tries gets the disk.
	vmAgain = 4 * time.Second
	vmRest  = 8 * time.Second
	// stillFor is for how long a diary may stand still before libvirt is asked what has become of the virtual machine.
	stillFor = 3 * time.Second
	// look is between two looks at a diary until its first record, less than between two of these.
	look = 20 * time.Millisecond
)

// diskImage is the name of what virtual machines compete for, beside their diaries.
const diskImage = "disk.img"

// guest is one turn of a virtual machine with a disk. It writes a counter to that disk, and each time to its diary after that, a disk of its
// own: so the storage knows when it has written last, whatever others write to the disk.
type guest struct {
	who   string
	diary string // on this machine

	mu          sync.Mutex // guards what follows
	asks        time.Time
	held        time.Time // the last look at which its first record was not there yet; zero while it is not
	first       uint32    // what it had counted to when its first record was found
	gives, gave time.Time
}

func (g *guest) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// hold is what the storage knows of it; false if it has not written.
func (g *guest) hold() (hold, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := hold{who: g.who, turn: 1, asks: g.asks, held: g.held, gives: g.gives, gave: g.gave}
	if g.held.IsZero() {
		return h, false, nil
	}
	info, err := os.Stat(g.diary)
	if err != nil {
		return h, false, err
	}
	count, err := counted(g.diary)
	h.last, h.records = info.ModTime(), int(count-g.first)+1
	return h, true, err
}

// counted is how far a virtual machine has counted, by its diary.
func counted(diary string) (uint32, error) {
	f, err := os.Open(diary)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, lab.CounterOffset+4)
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, err
	}
	return lab.Counter(b), nil
}

// lost lists where what a virtual machine has written was written over by an older one, or not read by a younger one: each counts on from
// what the disk has when it starts, so it has counted further with its first record than the one before with its last. The guests are in the order of
// their first records.
func lost(list []*guest) (pairs [][2]string, err error) {
	for i, g := range list[min(1, len(list)):] {
		old := list[i]
		count, err := counted(old.diary)
		if err != nil {
			return nil, err
		}
		if g.first <= count {
			pairs = append(pairs, [2]string{fmt.Sprintf("%s had counted to %d", old.who, count), fmt.Sprintf("%s began with %d", g.who, g.first)})
		}
	}
	return pairs, nil
}

// written are the turns with a disk that have written, in the order of their first records, when nobody writes any more.
func (w *world) written(d disk) (list []*guest) {
	w.guestsMu.Lock()
	defer w.guestsMu.Unlock()
	for _, g := range w.guests[d.name] {
		if _, have, _ := g.hold(); have {
			list = append(list, g)
		}
	}
	slices.SortFunc(list, func(a, b *guest) int { return a.held.Compare(b.held) })
	return list
}

// until looks at the diary, which was made empty at some time, until its first record is there, or the context ends.
func (g *guest) until(ctx context.Context, made time.Time) {
	each := time.NewTicker(look)
	defer each.Stop()
	for before := made; ; {
		now := time.Now()
		count, err := counted(g.diary)
		if err == nil && count > 0 {
			g.set(func() { g.held, g.first = before, count })
			return
		}
		before = now
		select {
		case <-each.C:
		case <-ctx.Done():
			return
		}
	}
}

// domain is the virtual machine for a disk.
func domain(d disk, who string) lab.Domain {
	dir := lab.SharedDir + "/" + d.name + "/"
	return lab.Domain{Name: vmName(d), AllDisks: true, Disks: []lab.Disk{{Path: dir + diskImage}, {Path: dir + who + ".img"}}}
}

// vmName is the same on all hosts: nobody else's libvirt minds.
func vmName(d disk) string { return "vm-" + d.name }

// guestOnce is writeOnce for a virtual machine: it starts one as soon as it may, and returns when that is gone.
func (w *world) guestOnce(ctx context.Context, h *host, d disk, n int) error {
	g := &guest{who: fmt.Sprintf("n%d-%d", h.ID(), n)}
	g.diary = filepath.Join(w.dir(d), g.who+".img")
	if err := os.WriteFile(g.diary, make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	made := time.Now()
	watching, stop := context.WithCancel(w.ctx)
	var watch sync.WaitGroup
	watch.Go(func() { g.until(watching, made) })
	defer func() {
		stop()
		watch.Wait()
	}()
	if started, err := w.startGuest(ctx, h, d, g); !started {
		return err
	}
	w.guestsMu.Lock()
	w.guests[d.name] = append(w.guests[d.name], g)
	w.guestsMu.Unlock()
	i := w.addWriter(d, writer{who: g.who, node: h.ID()})
	w.watchGuest(ctx, h, d, g)
	w.gone(d, i)
	if d.turn > 0 {
		w.wait(ctx, vmRest)
	}
	return nil
}

// startGuest asks until the virtual machine has started, or may have, or nobody wants it any more.
func (w *world) startGuest(ctx context.Context, h *host, d disk, g *guest) (bool, error) {
	for {
		started, err := w.tryGuest(ctx, h, d, g)
		if started || err != nil {
			return started, err
		}
		if h.is(func() bool { return h.closed || h.rebooting }) || !w.wait(ctx, vmAgain) {
			return false, nil
		}
	}
}

func (w *world) tryGuest(ctx context.Context, h *host, d disk, g *guest) (bool, error) {
	h.starts.RLock() // who closes the host waits for that
	defer h.starts.RUnlock()
	if ctx.Err() != nil || h.is(func() bool { return h.closed || h.rebooting }) {
		return false, nil
	}
	// Not with the test's own end: libvirt would go on starting it.
	create, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	g.set(func() { g.asks = time.Now() })
	res, err := h.Create(create, domain(d, g.who))
	if errors.Is(err, lab.ErrState) || errors.Is(err, lab.ErrNodeOff) || errors.Is(err, lab.ErrNotRunnable) {
		return false, err
	}
	return err != nil || res.OK(), nil
}

// watchGuest returns when a virtual machine is gone: it ends it when its turn is over, and when the context ends.
func (w *world) watchGuest(ctx context.Context, h *host, d disk, g *guest) {
	for {
		said, have, err := g.hold()
		if err != nil {
			w.t.Errorf("%s: %v", g.who, err)
		}
		over := have && d.turn > 0 && time.Since(said.held) > d.turn
		if over || ctx.Err() != nil {
			gives := time.Now()
			ending, cancel := context.WithTimeout(w.ctx, 30*time.Second)
			res, err := h.Destroy(ending, vmName(d))
			cancel()
			if errors.Is(err, lab.ErrNodeOff) {
				return
			}
			if err == nil && res.OK() {
				g.set(func() { g.gives, g.gave = gives, time.Now() })
				return
			}
		}
		if time.Since(said.last) > stillFor {
			asking, cancel := context.WithTimeout(w.ctx, 30*time.Second)
			state, err := h.DomainState(asking, vmName(d))
			cancel()
			if err == nil && state == "" || errors.Is(err, lab.ErrNodeOff) {
				return
			}
		}
		if !w.wait(w.ctx, time.Second) {
			return
		}
	}
}

// holds are the grants of a disk that the storage knows of, in their order.
func (w *world) holds(d disk) ([]hold, error) {
	if !w.shape.vms {
		return readHolds(w.dir(d))
	}
	w.guestsMu.Lock()
	defer w.guestsMu.Unlock()
	var list []hold
	for _, g := range w.guests[d.name] {
		h, have, err := g.hold()
		if err != nil {
			return nil, err
		}
		if have {
			list = append(list, h)
		}
	}
	return sorted(list), nil
}

// endWriters ends all that own locks on a host on which none is started any more.
func (w *world) endWriters(ctx context.Context, h *host) error {
	h.starts.Lock()
	defer h.starts.Unlock()
	for _, d := range w.shape.disks {
		if !w.shape.vms {
			if err := h.Service("writer-" + d.name).Kill(ctx); err != nil && !errors.Is(err, lab.ErrNotFound) {
				return err
			}
			continue
		}
		if _, err := h.Destroy(ctx, vmName(d)); err != nil { // that it has no such one is said in the result
			return err
		}
		if err := h.WaitDomain(ctx, vmName(d), ""); err != nil {
			return err
		}
	}
	return nil
}
