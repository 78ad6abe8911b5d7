package rpc

import (
	"context"
	"io"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// TestManyClients has more clients than virtlockd's 1024 open at once: Go's, and
// such as a C program makes, whose connect blocks.
func TestManyClients(t *testing.T) {
	const each = 700
	s := startServer(t, Options{})
	var wg sync.WaitGroup
	defer wg.Wait()
	jobs := make(chan int)
	var mu sync.Mutex
	var clients []*Client
	var fds []int
	for range 8 {
		wg.Go(func() {
			for i := range jobs {
				if i%2 == 0 {
					c, err := Dial(context.Background(), s.path)
					if err == nil {
						err = echo(c, "x")
					}
					if err != nil {
						t.Error(err)
						continue
					}
					mu.Lock()
					clients = append(clients, c)
					mu.Unlock()
					continue
				}
				fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
				if err == nil {
					err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: s.path})
				}
				if err != nil {
					t.Errorf("connect: %v", err)
					continue
				}
				mu.Lock()
				fds = append(fds, fd)
				mu.Unlock()
			}
		})
	}
	for i := range 2 * each {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
	for i, c := range clients {
		if err := echo(c, "again"); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		c.Close()
	}
	call := answerWith(header{program: 77, version: 2, procedure: procNumber})
	for i, fd := range fds {
		if _, err := syscall.Write(fd, call); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		var reply [64]byte
		if n, err := syscall.Read(fd, reply[:]); err != nil || n != 32 {
			t.Fatalf("client %d: %d bytes, %v", i, n, err)
		}
		syscall.Close(fd)
	}
}

// TestMemoryIsBounded: clients that say that something large comes, and send
// parts of it, get memory for what they sent, and all together no more than
// bigMemory and a small buffer each.
func TestMemoryIsBounded(t *testing.T) {
	const clients = 600
	s := startServer(t, Options{})
	start := appendMessage(nil, header{program: 77, version: 2, procedure: procEcho})
	copy(start, "\x02\x00\x00\x04") // 32 MiB
	start = append(start, make([]byte, 99_000)...)
	before := heap()
	var conns []io.Closer
	for range clients {
		c := s.raw()
		conns = append(conns, c)
		// As much as fits: the server does not read on for all of them.
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Write(func(fd uintptr) bool {
			_, _ = syscall.Write(int(fd), start)
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := echo(s.dial(), "others are served"); err != nil {
		t.Fatal(err)
	}
	if used, limit := heap()-before, int64(3*bigMemory/2+clients*(smallBuffer+4096)); used > limit {
		t.Errorf("%d bytes are used, want at most %d", used, limit)
	}
	for _, c := range conns {
		c.Close()
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkCalls(b *testing.B) {
	for name, n := range map[string]int{"1": 1, "64": 64} {
		b.Run("kept/"+name, func(b *testing.B) {
			s := startServer(b, Options{})
			b.ReportAllocs()
			b.SetParallelism((n + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				c, err := Dial(context.Background(), s.path)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				for pb.Next() {
					if err := c.Call(context.Background(), 77, 2, procNumber, nil, nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
	b.Run("new", func(b *testing.B) {
		s := startServer(b, Options{})
		b.ReportAllocs()
		for b.Loop() {
			c, err := Dial(context.Background(), s.path)
			if err != nil {
				b.Fatal(err)
			}
			if err := c.Call(context.Background(), 77, 2, procNumber, nil, nil); err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
	})
}
