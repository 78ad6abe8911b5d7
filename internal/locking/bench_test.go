package locking_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// trivialBackend grants everything at once, to measure the rules alone.
type trivialBackend struct{ locktest.Backend }

type trivialHandle string

func (*trivialBackend) Open(_ context.Context, ref locking.Ref, _ bool) (locking.Handle, error) {
	return trivialHandle(ref.Name), nil
}

func (h trivialHandle) ID() string                             { return string(h) }
func (trivialHandle) Lock(context.Context, locking.Mode) error { return nil }
func (trivialHandle) Unlock(context.Context) error             { return nil }
func (trivialHandle) Close()                                   {}

func BenchmarkAcquireRelease(b *testing.B) {
	for _, timeout := range []bool{false, true} {
		name := "without timeout"
		o := locking.Options{Backend: &trivialBackend{}, Processes: locktest.NewProcesses(b)}
		if timeout {
			name, o.RequestTimeout = "with timeout", requestTimeout
		}
		b.Run(name, func(b *testing.B) {
			m := locking.New(o)
			defer m.Close(context.Background())
			g, err := m.Register(locking.Owner{PID: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			ctx, ref := context.Background(), disk("/var/lib/libvirt/images/disk.qcow2")
			b.ReportAllocs()
			for b.Loop() {
				if g.Acquire(ctx, ref, locking.Exclusive, false) != nil || g.Release(ctx, ref) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}

// TestDeadlineAllocatesNothing: requests that begin together share what a deadline needs.
func TestDeadlineAllocatesNothing(t *testing.T) {
	allocations := func(timeout time.Duration) float64 {
		m := locking.New(locking.Options{Backend: &trivialBackend{}, Processes: locktest.NewProcesses(t), RequestTimeout: timeout})
		defer m.Close(context.Background())
		g, err := m.Register(locking.Owner{PID: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		ctx, ref := t.Context(), disk("/var/lib/libvirt/images/disk.qcow2")
		return testing.AllocsPerRun(500, func() {
			if g.Acquire(ctx, ref, locking.Exclusive, false) != nil || g.Release(ctx, ref) != nil {
				t.Fatal("refused")
			}
		})
	}
	if without, with := allocations(0), allocations(time.Hour); with > without {
		t.Errorf("a pair allocates %v times with a deadline, %v times without", with, without)
	}
}

// One resource each: what they share is the Manager's own tables.
func BenchmarkAcquireReleaseParallel(b *testing.B) {
	m := locking.New(locking.Options{Backend: &trivialBackend{}, Processes: locktest.NewProcesses(b)})
	defer m.Close(context.Background())
	var next atomic.Int32
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		n := next.Add(1)
		g, err := m.Register(locking.Owner{PID: -n})
		if err != nil {
			b.Error(err)
			return
		}
		defer g.Close()
		ctx, ref := context.Background(), disk(string(rune('a'+n)))
		for pb.Next() {
			if g.Acquire(ctx, ref, locking.Exclusive, false) != nil || g.Release(ctx, ref) != nil {
				b.Error("refused")
				return
			}
		}
	})
}

// BenchmarkHoldersOf must not cost more with more locks: each refusal in the
// cluster asks it of every host.
func BenchmarkHoldersOf(b *testing.B) {
	for _, locks := range []int{10, 10_000} {
		b.Run(fmt.Sprint(locks, " locks"), func(b *testing.B) {
			m := locking.New(locking.Options{Backend: &trivialBackend{}, Processes: locktest.NewProcesses(b)})
			defer m.Close(context.Background())
			g, err := m.Register(locking.Owner{PID: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			for i := range locks {
				if err := g.Acquire(context.Background(), disk(fmt.Sprint(i)), locking.Exclusive, false); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if len(m.HoldersOf("7")) != 1 {
					b.Fatal("not held")
				}
			}
		})
	}
}
