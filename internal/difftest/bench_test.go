package difftest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// BenchmarkPairs measures pairs of acquire and release, of both daemons in the
// same run: on kept connections, and on a new connection for each call with a
// registration of its own, as libvirt's plug-in makes them. The clients run on
// the same CPUs; vmlockd is in this process, unless the lab is asked for.
func BenchmarkPairs(b *testing.B) {
	daemons := []*daemon{{name: "virtlockd", dir: b.TempDir()}, {name: "vmlockd", dir: b.TempDir()}}
	daemons[0].socket = startVirtlockd(b, findVirtlockd(b))
	daemons[1].socket = startVmlockd(b)
	pid := children(b, 1)[0]
	for _, kept := range []bool{true, false} {
		for _, clients := range []int{1, 8, 64} {
			for _, d := range daemons {
				name := map[bool]string{true: "kept", false: "new"}[kept]
				b.Run(fmt.Sprintf("%s/%d/%s", name, clients, d.name), func(b *testing.B) {
					d.benchPairs(b, pid, clients, kept)
				})
			}
		}
	}
}

func (d *daemon) benchPairs(b *testing.B, pid int32, clients int, kept bool) {
	ctx := context.Background()
	open := func() *lockprogram.Client {
		c, err := lockprogram.Dial(ctx, d.socket)
		if err == nil {
			err = c.Register(ctx, locking.Owner{PID: pid, ID: 1, Name: "vm"})
		}
		if err != nil {
			b.Error(err)
			return nil
		}
		return c
	}
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for i := range clients {
		pairs := b.N / clients
		if i < b.N%clients {
			pairs++
		}
		wg.Go(func() {
			ref := locking.Ref{Name: filepath.Join(d.dir, fmt.Sprint("disk", i))}
			if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
				b.Error(err)
				return
			}
			own := make([]time.Duration, 0, pairs)
			var c *lockprogram.Client
			for n := range pairs {
				start := time.Now()
				for _, f := range []func() error{
					func() error { return c.Acquire(ctx, ref, 0) },
					func() error { return c.Release(ctx, ref) },
				} {
					if n == 0 && c == nil || !kept {
						if c = open(); c == nil {
							return
						}
					}
					if err := f(); err != nil {
						b.Error(err)
						return
					}
					if !kept {
						c.Close()
					}
				}
				own = append(own, time.Since(start))
			}
			if c != nil {
				c.Close()
			}
			mu.Lock()
			took = append(took, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	b.StopTimer()
	if len(took) > 0 {
		slices.Sort(took)
		b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "pairs/s")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	}
}
