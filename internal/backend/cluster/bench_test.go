package cluster_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// benchHosts are two backends on a simulated cluster, which takes no time for
// messages: what is measured is this package and package dlm.
func benchHosts(b *testing.B) (one, two *cluster.Backend) {
	nodes := dlmtest.NewCluster(2)
	var list [2]*cluster.Backend
	for i := range list {
		var err error
		if list[i], err = cluster.New(cluster.Options{Lockspace: space, Kernel: nodes.Node(i + 1)}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := list[i].Close(context.Background(), false); err != nil {
				b.Error(err)
			}
		})
	}
	return list[0], list[1]
}

// processor is the processor time of this process so far: on a busy machine it
// says more than the time that has passed.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPairs takes a lock and gives it back, with its owner described to the
// backend, which then publishes what is held for long enough, and without.
func BenchmarkPairs(b *testing.B) {
	for _, clients := range []int{1, 32} { // for each processor
		for _, described := range []bool{false, true} {
			b.Run(fmt.Sprintf("clients=%d/described=%v", clients, described), func(b *testing.B) {
				backend, _ := benchHosts(b)
				var n atomic.Int64
				ctx := context.Background()
				b.SetParallelism(clients)
				used := processor(b)
				b.RunParallel(func(pb *testing.PB) {
					name := ref(fmt.Sprint("/disk", n.Add(1)))
					for pb.Next() {
						h, err := backend.Open(ctx, name, false)
						if err == nil {
							err = h.Lock(ctx, locking.Exclusive)
						}
						if err == nil && described {
							h.(locking.Describer).Describe(vm(1), time.Now())
						}
						if err == nil {
							err = h.Unlock(ctx)
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(processor(b)-used)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkRefusals asks for what another node has, with and without being told
// who that is.
func BenchmarkRefusals(b *testing.B) {
	for _, explained := range []bool{false, true} {
		b.Run(fmt.Sprintf("explained=%v", explained), func(b *testing.B) {
			one, two := benchHosts(b)
			ctx := context.Background()
			held, _ := one.Open(ctx, ref("/a"), false)
			if err := held.Lock(ctx, locking.Exclusive); err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := held.Unlock(ctx); err != nil {
					b.Error(err)
				}
			}()
			held.(locking.Describer).Describe(vm(1), time.Now())
			refuse := func() []locking.RemoteHolder {
				h, _ := two.Open(ctx, ref("/a"), false)
				err := h.Lock(ctx, locking.Exclusive)
				if err == nil {
					b.Fatal("granted")
				}
				if !explained {
					return nil
				}
				return err.(locking.HolderFinder).FindHolders(ctx)
			}
			for explained && len(refuse()) == 0 { // until it is published
			}
			for b.Loop() {
				refuse()
			}
		})
	}
}
