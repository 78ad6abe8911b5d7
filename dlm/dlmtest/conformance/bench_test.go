package conformance_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// kernel is this machine's if it may be used, otherwise a simulated one.
func kernel() dlm.Kernel {
	if os.Getenv(realEnv) == "1" {
		return dlm.Host()
	}
	return dlmtest.NewCluster(1).Node(1)
}

func lockspace(b *testing.B, k dlm.Kernel) *dlm.Lockspace {
	b.Helper()
	ls, err := dlm.Create(b.Context(), k, "bench", dlm.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := ls.Leave(context.WithoutCancel(b.Context()), true); err != nil {
			b.Error(err)
		}
	})
	return ls
}

func BenchmarkLockUnlock(b *testing.B) {
	ls := lockspace(b, kernel())
	b.ReportAllocs()
	for b.Loop() {
		l, err := ls.Lock(b.Context(), "a", dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
		if err == nil {
			err = l.Unlock(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLockUnlockParallel(b *testing.B) {
	ls := lockspace(b, kernel())
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		name := fmt.Sprintf("%p", pb)
		for pb.Next() {
			l, err := ls.Lock(b.Context(), name, dlm.EX, dlm.LockOptions{NoQueue: true})
			if err == nil {
				err = l.Unlock(b.Context())
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

const many = 10_000

// orphans leaves many orphans.
func orphans(b *testing.B, k dlm.Kernel) (names []string) {
	b.Helper()
	ls, err := dlm.Open(b.Context(), k, "bench", dlm.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for i := range many {
		names = append(names, fmt.Sprintf("%032d", i))
		if _, err := ls.Lock(b.Context(), names[i], dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true}); err != nil {
			b.Fatal(err)
		}
	}
	if err := ls.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	return names
}

// BenchmarkAdopt is about many adoptions, each time.
func BenchmarkAdopt(b *testing.B) {
	k := kernel()
	lockspace(b, k)
	names := orphans(b, k)
	adoptions := make([]dlm.Adoption, many)
	for i, name := range names {
		adoptions[i] = dlm.Adoption{Name: name, Mode: dlm.EX, Options: dlm.LockOptions{Persistent: true}}
	}
	b.Run("All", func(b *testing.B) {
		for b.Loop() {
			ls := opened(b, k)
			for _, a := range ls.AdoptAll(b.Context(), adoptions) {
				if a.Err != nil {
					b.Fatal(a.Err)
				}
			}
			b.StopTimer()
			closed(b, ls)
			b.StartTimer()
		}
	})
	b.Run("OneByOne", func(b *testing.B) {
		for b.Loop() {
			ls := opened(b, k)
			for _, a := range adoptions {
				if _, err := ls.Adopt(b.Context(), a.Name, a.Mode, a.Options); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			closed(b, ls)
			b.StartTimer()
		}
	})
	b.Run("Bare", func(b *testing.B) { // nothing but the writes
		for b.Loop() {
			minor, err := k.Minor("bench")
			if err != nil {
				b.Fatal(err)
			}
			d, err := k.Lockspace("bench", minor)
			if err != nil {
				b.Fatal(err)
			}
			for _, name := range names {
				p := abi.LockParams{Mode: uint8(dlm.EX), Flags: abi.FlagOrphan | abi.FlagPersistent, Castaddr: 1, Lksb: 1}
				if _, err := d.Write(abi.EncodeLock(abi.CmdLock, p, name)); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if err := d.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func opened(b *testing.B, k dlm.Kernel) *dlm.Lockspace {
	b.Helper()
	ls, err := dlm.Open(b.Context(), k, "bench", dlm.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return ls
}

func closed(b *testing.B, ls *dlm.Lockspace) {
	b.Helper()
	if err := ls.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}
