package local

import (
	"context"
	"fmt"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// BenchmarkPair opens, locks and gives up a file: three calls of the file system, each on a goroutine
// of its own, which is new or was kept.
func BenchmarkPair(b *testing.B) {
	for _, kept := range []int{0, 16} {
		b.Run(fmt.Sprintf("kept=%d", kept), func(b *testing.B) {
			files, ref := New(), locking.Ref{Name: disk(b)}
			files.KeepWorkers(kept)
			defer files.KeepWorkers(0)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			b.ReportAllocs()
			for b.Loop() {
				h, err := files.Open(ctx, ref, false)
				if err == nil {
					err = h.Lock(ctx, locking.Exclusive)
				}
				if err == nil {
					err = h.Unlock(ctx)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
