package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// pair is what a lock's whole life costs: four records.
func pair(b testing.TB, j locking.Journal, e locking.Entry) {
	seq, err := j.Intend(e)
	if err == nil {
		err = j.Grant(seq)
	}
	if err == nil {
		err = j.Releasing(seq)
	}
	if err == nil {
		err = j.Forget(seq)
	}
	if err != nil {
		b.Error(err)
	}
}

func benchPairs(b *testing.B, j locking.Journal, goroutines int) {
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			e := entry(g)
			for left.Add(-1) >= 0 {
				pair(b, j, e)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}

func BenchmarkPair(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		for _, live := range []int{0, 100_000} {
			b.Run(fmt.Sprintf("goroutines=%d/live=%d", n, live), func(b *testing.B) {
				j, _ := mustOpen(b, memoryDir(b))
				fill(b, j, live)
				benchPairs(b, j, n)
				b.ReportMetric(float64(j.Stats().Compactions), "compactions")
			})
		}
	}
}

// BenchmarkLongestWait is the longest that any record took while the journal
// with 100,000 live entries was compacted over and over. Most of what it shows on
// a busy machine is the scheduler.
func BenchmarkLongestWait(b *testing.B) {
	j, _ := mustOpen(b, memoryDir(b))
	fill(b, j, 100_000)
	var longest time.Duration
	e := entry(0)
	for b.Loop() {
		start := time.Now()
		pair(b, j, e)
		longest = max(longest, time.Since(start))
	}
	b.ReportMetric(float64(longest.Microseconds()), "us-longest")
	b.ReportMetric(float64(j.Stats().Compactions), "compactions")
}

// bolt is the same journal as a bbolt database, with NoSync: enough against the
// daemon's death, since what was written is the kernel's.
type bolt struct{ db *bbolt.DB }

var bucket = []byte("entries")

func openBolt(b testing.TB) bolt {
	db, err := bbolt.Open(filepath.Join(memoryDir(b), "bolt"), 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	must(b, err)
	b.Cleanup(func() { db.Close() })
	must(b, db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket(bucket); return err }))
	return bolt{db}
}

func (d bolt) Intend(e locking.Entry) (seq uint64, err error) {
	err = d.db.Batch(func(tx *bbolt.Tx) error {
		bk := tx.Bucket(bucket)
		seq, err = bk.NextSequence()
		if err != nil {
			return err
		}
		e.Seq = seq
		return bk.Put(key(seq), appendEntry(nil, mark{}, 0, &e))
	})
	return seq, err
}

func (d bolt) set(seq uint64, s locking.EntryState) error {
	return d.db.Batch(func(tx *bbolt.Tx) error {
		bk := tx.Bucket(bucket)
		v := append([]byte(nil), bk.Get(key(seq))...)
		if v == nil {
			return errors.New("no entry")
		}
		v[offState] = byte(s)
		return bk.Put(key(seq), v)
	})
}

func (d bolt) Grant(seq uint64) error     { return d.set(seq, locking.EntryGranted) }
func (d bolt) Releasing(seq uint64) error { return d.set(seq, locking.EntryReleasing) }
func (d bolt) Forget(seq uint64) error {
	return d.db.Batch(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete(key(seq)) })
}
func (d bolt) AddLockspace(string) error { return nil }

func key(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// BenchmarkBoltPair is BenchmarkPair with bbolt instead.
func BenchmarkBoltPair(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		for _, live := range []int{0, 10_000} {
			b.Run(fmt.Sprintf("goroutines=%d/live=%d", n, live), func(b *testing.B) {
				d := openBolt(b)
				// A batch goes as soon as everybody is in it.
				d.db.MaxBatchSize = n
				d.db.MaxBatchDelay = 100 * time.Microsecond
				must(b, d.db.Update(func(tx *bbolt.Tx) error {
					bk := tx.Bucket(bucket)
					for i := range live {
						e := entry(i)
						e.Seq, _ = bk.NextSequence()
						if err := bk.Put(key(e.Seq), appendEntry(nil, mark{}, 0, &e)); err != nil {
							return err
						}
					}
					return nil
				}))
				benchPairs(b, d, n)
			})
		}
	}
}

func fill(b testing.TB, j *Journal, n int) {
	for i := range n {
		seq, err := j.Intend(entry(i))
		if err == nil {
			err = j.Grant(seq)
		}
		must(b, err)
	}
}

// BenchmarkOpen opens a journal with so many locks held.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := memoryDir(b)
			j, _ := mustOpen(b, dir)
			fill(b, j, n)
			j.Close()
			b.ReportAllocs()
			for b.Loop() {
				j, r, err := Open(dir, boot)
				if err != nil || r.Damage != nil || len(r.Entries) != n {
					b.Fatalf("%d entries, damage %v, %v", len(r.Entries), r.Damage, err)
				}
				j.Close()
			}
		})
	}
}

// BenchmarkHeld reports what a held lock takes, in memory and in the file.
func BenchmarkHeld(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		j, _ := mustOpen(b, memoryDir(b))
		before := heap()
		fill(b, j, n)
		b.ReportMetric(float64(heap()-before)/n, "heap-B/lock")
		b.ReportMetric(float64(j.Stats().Bytes)/n, "file-B/lock")
		must(b, j.Close())
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
