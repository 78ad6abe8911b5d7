package holder

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkPut reports, beside the time for a Put and its Drop, the processor time
// that this process and the holder spend on it.
func BenchmarkPut(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			c := start(b, socket(b))
			pid := c.Status().PID
			ctx := context.Background()
			fds := make([]int, callers)
			for i := range fds {
				fds[i] = temp(b)
			}
			var g sync.WaitGroup
			ours, its := ownTime(b), schedTime(b, pid)
			b.ResetTimer()
			for i, fd := range fds {
				g.Go(func() {
					for range b.N/callers + i%2 {
						if err := c.Put(ctx, "file 64769 1234567", fd); err != nil {
							b.Error(err)
							return
						}
						c.Drop(fd)
					}
				})
			}
			g.Wait()
			b.StopTimer()
			b.ReportMetric(float64(ownTime(b)-ours)/float64(b.N)/1e3, "daemon-us/op")
			b.ReportMetric(float64(schedTime(b, pid)-its)/float64(b.N)/1e3, "holder-us/op")
		})
	}
}

// BenchmarkHeld reports the memory of a holder with nothing and of each descriptor.
func BenchmarkHeld(b *testing.B) {
	const n = 10_000
	path := socket(b)
	c := start(b, path)
	empty := pss(b, c.Status().PID)
	fds := make([]int, n)
	for i := range fds {
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		fds[i] = fd
	}
	var g sync.WaitGroup
	for w := range 64 {
		g.Go(func() {
			for i := w; i < n; i += 64 {
				if err := c.Put(context.Background(), fmt.Sprintf("file 64769 %d", 1234000+i), fds[i]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	for _, fd := range fds {
		unix.Close(fd) // allowed here only: this client comes to an end first
	}
	pid := c.Status().PID
	full := pss(b, pid)
	c.Close()
	for b.Loop() {
		c, err := Connect(context.Background(), Options{Socket: path})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Close()
		for _, fd := range c.Taken() {
			unix.Close(fd)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(empty)/1024, "empty-PSS-MiB")
	b.ReportMetric(float64(full-empty)*1024/n, "B/descriptor")
}

// BenchmarkStart is a holder started, greeted and left.
func BenchmarkStart(b *testing.B) {
	for range b.N {
		b.StopTimer()
		path := socket(b)
		b.StartTimer()
		c, err := Connect(context.Background(), Options{Socket: path})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Close()
		end(b, path)
		b.StartTimer()
	}
}

func ownTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// schedTime adds up what /proc/PID/task/*/schedstat has for each thread.
func schedTime(b *testing.B, pid int) (sum time.Duration) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// pss is the proportional set size in KiB.
func pss(b *testing.B, pid int) int64 {
	runtime.GC()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); fields[0] == "Pss:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib
		}
	}
	b.Fatal("no Pss")
	return 0
}
