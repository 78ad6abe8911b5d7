package dlm_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

var kept = dlm.LockOptions{NoQueue: true, Persistent: true}

// A request that is under way is undone before the handover, and one that cannot be keeps it from happening.
func TestHandoverWaits(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		k := c.Node(1)
		ls := create(t, k, dlm.Options{})
		_, err := ls.Lock(t.Context(), "held", dlm.EX, kept)
		must(t, err)
		granted := dlmtest.NewGate()
		k.SetFault(new(recorder).fault("lock", dlmtest.Fault{Result: granted}))
		late := make(chan error)
		go func() {
			_, err := ls.Lock(t.Context(), "late", dlm.EX, kept)
			late <- err
		}()
		fakeclock.Wait()
		k.SetFault(nil)
		time.AfterFunc(time.Second, granted.Open)
		h, err := ls.Handover(soon(t, time.Minute))
		must(t, err)
		want(t, <-late, dlm.ErrClosed)
		if h.Len() != 1 || len(c.Names(space)) != 1 {
			t.Fatalf("%d locks are handed over, and %q are held", h.Len(), c.Names(space))
		}
		_, err = ls.Handover(t.Context())
		want(t, err, dlm.ErrClosed)

		ls, _, err = dlm.Resume(t.Context(), k, h, dlm.Options{})
		must(t, err)
		c.Suspend(space)
		go func() {
			_, err := ls.Lock(t.Context(), "stopped", dlm.EX, kept)
			late <- err
		}()
		fakeclock.Wait()
		_, err = ls.Handover(soon(t, time.Second))
		want(t, err, dlm.ErrUnsettled)
		want(t, <-late, dlm.ErrClosed)
		c.Resume(space)
		want(t, ls.Close(t.Context()), dlm.ErrUnsettled)
		ls = create(t, k, dlm.Options{})
		l, err := ls.Adopt(t.Context(), "held", dlm.EX, kept)
		must(t, err)
		must(t, l.Unlock(t.Context()))
		must(t, ls.Close(t.Context()))
	})
}

// A conversion whose result has not come is so for the next program too: it counts as under way, its result is nobody
// else's, and the lock's mode follows it.
func TestHandoverOfWhatIsOwed(t *testing.T) {
	for _, lvb := range []*dlm.LVB{nil, {1, 2, 3}} {
		within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
			k := c.Node(1)
			ls := create(t, k, dlm.Options{})
			_, err := ls.Lock(t.Context(), "a", dlm.EX, kept)
			must(t, err)
			_, err = ls.Lock(t.Context(), "b", dlm.EX, kept)
			must(t, err)
			must(t, ls.Close(t.Context()))
			ls = create(t, k, dlm.Options{})
			l, err := ls.Adopt(t.Context(), "a", dlm.EX, kept)
			must(t, err)
			_, err = ls.Adopt(t.Context(), "b", dlm.EX, kept)
			must(t, err)
			answer := dlmtest.NewGate()
			k.SetFault(new(recorder).fault("convert", dlmtest.Fault{Result: answer}))
			want(t, l.Convert(t.Context(), dlm.PR, dlm.ConvertOptions{NoQueue: true, WriteLVB: lvb}), dlm.ErrNoResult)
			k.SetFault(nil)
			h, err := ls.Handover(t.Context())
			must(t, err)

			b, err := h.MarshalBinary()
			must(t, err)
			if b[0] != 2 {
				t.Errorf("format %d, with which a program that does not know of it would go on", b[0])
			}
			var again dlm.Handover
			for cut := range b {
				want(t, again.UnmarshalBinary(b[:cut]), dlm.ErrInvalid)
			}
			must(t, again.UnmarshalBinary(b))
			if back, _ := again.MarshalBinary(); !bytes.Equal(b, back) {
				t.Error("it is another one after the way through bytes")
			}
			u, err := dlm.NewUnderWay(make([]byte, dlm.UnderWaySize))
			must(t, err)
			ls, list, err := dlm.Resume(t.Context(), k, &again, dlm.Options{UnderWay: u})
			must(t, err)
			l = list[0]
			if n, _ := u.Count(); n != 1 {
				t.Errorf("%d requests are under way, want 1", n)
			}
			want(t, l.Convert(t.Context(), dlm.PR, dlm.ConvertOptions{NoQueue: true}), dlm.ErrNoResult)
			must(t, list[1].Convert(t.Context(), dlm.EX, dlm.ConvertOptions{NoQueue: true}))
			if l.Mode() != dlm.EX {
				t.Errorf("mode %v before the result", l.Mode())
			}
			answer.Open()
			fakeclock.Wait()
			if n, _ := u.Count(); n != 0 || l.Mode() != dlm.PR {
				t.Errorf("after the result %d requests are under way, mode %v", n, l.Mode())
			}
			if got, valid := l.LVB(); lvb != nil && (got != *lvb || !valid) {
				t.Errorf("LVB %v, valid %v", got, valid)
			}
			must(t, l.Convert(t.Context(), dlm.EX, dlm.ConvertOptions{NoQueue: true}))
			must(t, ls.Close(t.Context()))
		})
	}
}

// plain is a Kernel that can do nothing special.
type plain struct{ dlm.Kernel }

type plainDevice struct{ dlm.Device }

func (k plain) Lockspace(name string, minor uint32) (dlm.Device, error) {
	d, err := k.Kernel.Lockspace(name, minor)
	return plainDevice{d}, err
}

func TestHandoverOfAPlainKernel(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		k := plain{c.Node(1)}
		ls := create(t, k, dlm.Options{})
		_, err := ls.Handover(t.Context())
		want(t, err, dlm.ErrNoHandover)
		must(t, ls.Close(t.Context()))
		_, _, err = dlm.Resume(t.Context(), k, &dlm.Handover{Lockspace: space}, dlm.Options{})
		want(t, err, dlm.ErrNoHandover)
	})
}

// Ten thousand locks are handed over in about a megabyte.
func TestHandoverBytes(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		const n = 1000
		ls := create(t, c.Node(1), dlm.Options{})
		for i := range n {
			_, err := ls.Lock(t.Context(), fmt.Sprintf("%064d", i), dlm.EX, kept)
			must(t, err)
		}
		h, err := ls.Handover(t.Context())
		must(t, err)
		b, err := h.MarshalBinary()
		must(t, err)
		if len(b) > n*100 {
			t.Errorf("%d bytes for %d locks", len(b), n)
		}
		var again dlm.Handover
		for cut := 0; cut < len(b); cut += max(1, min(cut-200, 997)) {
			if err := again.UnmarshalBinary(b[:cut]); !errors.Is(err, dlm.ErrInvalid) {
				t.Fatalf("cut to %d bytes: %v", cut, err)
			}
		}
		must(t, again.UnmarshalBinary(b))
		if back, _ := again.MarshalBinary(); !bytes.Equal(b, back) {
			t.Error("it is another one after the way through bytes")
		}
		must(t, again.Discard(t.Context(), c.Node(1)))
	})
}

// No bytes make trouble, take much memory, or become locks that cannot be.
func FuzzHandover(f *testing.F) {
	f.Add([]byte{})
	c := dlmtest.NewCluster(1)
	ls, err := dlm.Create(f.Context(), c.Node(1), space, dlm.Options{})
	if err != nil {
		f.Fatal(err)
	}
	for _, mode := range []dlm.Mode{dlm.PR, dlm.EX} {
		if _, err := ls.Lock(f.Context(), mode.String(), mode, dlm.LockOptions{Notify: true, LVB: true}); err != nil {
			f.Fatal(err)
		}
	}
	h, err := ls.Handover(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	b, _ := h.MarshalBinary()
	f.Add(b)
	// With a conversion to PW that is owed, of a lock in EX whose name is "a".
	f.Add([]byte("\x02\x05space\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x44\x05\xff\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01a\x04"))
	if err := h.Discard(f.Context(), c.Node(1)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var h dlm.Handover
		var err error
		testenv.Bounded(t, 100, len(data), func() { err = h.UnmarshalBinary(data) })
		if err != nil {
			return
		}
		if h.Len() > len(data)/17 {
			t.Fatalf("%d locks of %d bytes", h.Len(), len(data))
		}
		c := dlmtest.NewCluster(1)
		ls, err := dlm.Create(t.Context(), c.Node(1), space, dlm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		own, err := ls.Handover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		h.Lockspace, h.FD = own.Lockspace, own.FD
		ls, list, err := dlm.Resume(t.Context(), c.Node(1), &h, dlm.Options{})
		if err != nil {
			if !errors.Is(err, dlm.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for _, l := range list {
			if l.ID() == 0 || l.Name() == "" || len(l.Name()) > dlm.MaxResourceName || l.Mode() > dlm.EX {
				t.Errorf("lock %d %q %v", l.ID(), l.Name(), l.Mode())
			}
		}
		if err := ls.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
