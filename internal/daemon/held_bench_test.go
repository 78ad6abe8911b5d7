package daemon

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/owner"
)

// BenchmarkPairHeld takes a lock and gives it back while others are held: rules, journal and the backend "cluster" on a
// simulated DLM, which takes no time for messages. What a pair costs must not depend on how many there are; the lab, where the
// kernel is a real one, is too restless to tell, and takes long for 100,000.
func BenchmarkPairHeld(b *testing.B) {
	for _, held := range []int{100, 10000, 100000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) { pairHeld(b, held) })
	}
}

func pairHeld(b *testing.B, held int) {
	g := newSimulated(b)
	takeShared(b, g, 0, held)
	n, used := 0, usedTime(b)
	for b.Loop() {
		n++
		ref := locking.Ref{Name: fmt.Sprint("new", n)}
		if err := g.Acquire(b.Context(), ref, locking.Exclusive, false); err != nil {
			b.Fatal(err)
		}
		if err := g.Release(b.Context(), ref); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((usedTime(b)-used).Microseconds())/float64(b.N), "cpu-us/op")
}

// newSimulated are the rules with a journal and the backend "cluster" on a simulated DLM, and an owner there.
func newSimulated(tb testing.TB) *locking.Registration {
	backend, err := cluster.New(cluster.Options{Lockspace: "vmlockd", Kernel: dlmtest.NewCluster(1).Node(1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { backend.Close(context.Background(), false) })
	j, _, err := journal.Open(tb.TempDir(), "this")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { j.Close() })
	if err := j.Settled(); err != nil {
		tb.Fatal(err)
	}
	m := locking.New(locking.Options{Backend: backend, Processes: owner.Processes{}, Journal: j})
	tb.Cleanup(func() { m.Close(context.Background()) })
	g, err := m.Register(locking.Owner{PID: int32(os.Getpid()), Name: "web"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.Close)
	return g
}

// takeShared takes locks as many clients at a time do. A shared one has no owner written into it, which would go on
// meanwhile. Its name has 48 bytes.
func takeShared(tb testing.TB, g *locking.Registration, from, to int) {
	tb.Helper()
	const clients = 64
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for n := from + client; n < to; n += clients {
				if err := g.Acquire(tb.Context(), locking.Ref{Name: fmt.Sprintf("%048d", n)}, locking.Shared, false); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
}

// usedTime is what this process has used of the processors, which says more on a busy machine than the time that has passed.
func usedTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
