package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// compete has a writer run on a host that wants a disk, for as long as the context lasts: a new
// one each time that it was ended, as its guard does, or the end of its node.
func (w *world) compete(ctx context.Context, h *host, d disk) {
	for n := 1; ctx.Err() == nil; n++ {
		if h.is(func() bool { return h.closed || h.rebooting }) {
			n--
			w.wait(ctx, time.Second)
			continue
		}
		if err := w.once(ctx, h, d, n); err != nil && ctx.Err() == nil {
			w.wait(ctx, time.Second) // its node is off, or about to be
		}
		w.wait(ctx, 2*time.Second) // without vmlockd it ends at once
	}
}

// once has one writer of the kind that the shape wants, from its start until it is gone.
func (w *world) once(ctx context.Context, h *host, d disk, n int) error {
	if w.shape.vms {
		return w.guestOnce(ctx, h, d, n)
	}
	return w.writeOnce(ctx, h, d, n)
}

// writeOnce starts a writer and returns when it is gone, which it notes. When the context ends it ends the writer.
func (w *world) writeOnce(ctx context.Context, h *host, d disk, n int) error {
	who := fmt.Sprintf("n%d-%d", h.ID(), n)
	p, err := h.Start(ctx, "writer-"+d.name, "writer", lab.SharedDir+"/"+d.name, who, "/disk/"+d.name, d.turn.String())
	if errors.Is(err, lab.ErrState) || errors.Is(err, lab.ErrNodeOff) || errors.Is(err, lab.ErrNotRunnable) {
		return err
	}
	// After any other error it may run all the same.
	i := w.addWriter(d, writer{who: who, node: h.ID()})
	for {
		_, err := p.Wait(ctx)
		switch {
		case err == nil, errors.Is(err, lab.ErrNotFound), errors.Is(err, lab.ErrNodeOff):
			w.gone(d, i)
			return nil
		case ctx.Err() != nil:
			kill, cancel := context.WithTimeout(w.ctx, 30*time.Second)
			defer cancel()
			if err := p.Kill(kill); err != nil && !errors.Is(err, lab.ErrNotFound) && !errors.Is(err, lab.ErrNodeOff) {
				w.t.Errorf("a writer cannot be ended: %v", err)
				return err
			}
			w.gone(d, i)
			return nil
		}
		w.wait(ctx, time.Second) // the answer was lost
	}
}

func (w *world) addWriter(d disk, one writer) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writers[d.name] = append(w.writers[d.name], one)
	return len(w.writers[d.name]) - 1
}

func (w *world) gone(d disk, i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writers[d.name][i].ended = time.Now()
}
