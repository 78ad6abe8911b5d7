package daemon

import (
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
	backend, err := cluster.New(cluster.Options{Lockspace: "vmlockd", Kernel: dlmtest.NewCluster(1).Node(1)})
	if err != nil {
		b.Fatal(err)
	}
	defer backend.Close(b.Context(), false)
	j, _, err := journal.Open(b.TempDir(), "this")
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	if err := j.Settled(); err != nil {
		b.Fatal(err)
	}
	m := locking.New(locking.Options{Backend: backend, Processes: owner.Processes{}, Journal: j})
	defer m.Close(b.Context())
	g, err := m.Register(locking.Owner{PID: int32(os.Getpid()), Name: "web"})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	const clients = 64
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for n := client; n < held; n += clients {
				// A shared one has no owner written into it, which would go on meanwhile.
				if err := g.Acquire(b.Context(), locking.Ref{Name: fmt.Sprint("held", n)}, locking.Shared, false); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		return
	}
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

// usedTime is what this process has used of the processors, which says more on a busy machine than the time that has passed.
func usedTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
