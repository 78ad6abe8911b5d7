package local

import (
	"fmt"
	"testing"
)

// BenchmarkPair opens, locks and gives up a file: three calls of the file system, each on a goroutine
// of its own, which is new or was kept.
func BenchmarkPair(b *testing.B) {
	for _, kept := range []int{0, 16} {
		b.Run(fmt.Sprintf("kept=%d", kept), func(b *testing.B) {
			files, path := New(), disk(b)
			files.KeepWorkers(kept)
			defer files.KeepWorkers(0)
			b.ReportAllocs()
			for b.Loop() {
				pair(b, files, path)
			}
		})
	}
}
