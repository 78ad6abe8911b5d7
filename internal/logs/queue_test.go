package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// hanging takes nothing until it is let go on.
type hanging struct {
	goOn chan struct{}
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func newHanging() *hanging { return &hanging{goOn: make(chan struct{})} }

func (h *hanging) Write(p []byte) (int, error) {
	<-h.goOn
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(p)
}

// send is a journald that is this writer.
func (h *hanging) send(text string, _ journal.Priority, _ map[string]string) error {
	_, err := h.Write([]byte(text + "\n"))
	return err
}

func (h *hanging) lines() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Split(strings.TrimSuffix(h.text.String(), "\n"), "\n")
}

func noJournald(string, journal.Priority, map[string]string) error {
	return errors.New("there is no journald")
}

// small makes the queue so small that little fills it.
func small(log *slog.Logger) *queue {
	q := log.Handler().(handler).queue
	q.limit = 64 << 10 // only put looks at it, and nobody has logged yet
	return q
}

var formats = []string{"text", "json", "journal"}

// TestNobodyWaits: who logs goes on while what is logged is not taken, all of it is
// written later, and in order.
func TestNobodyWaits(t *testing.T) {
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			h := newHanging()
			log := logger(t, slog.LevelInfo, format, h, h.send)
			const records = 1000
			for i := range records {
				log.With("a", 1).WithGroup("g").Info(fmt.Sprintf("record<%d>", i), "b", 2)
			}
			if got := Dropped(log); got != 0 {
				t.Fatalf("%d records were dropped", got)
			}
			close(h.goOn)
			if !Flush(log) {
				t.Fatal("not written in a second")
			}
			lines := h.lines()
			if len(lines) != records {
				t.Fatalf("%d lines", len(lines))
			}
			for i, l := range lines {
				if !strings.Contains(l, fmt.Sprintf("record<%d>", i)) {
					t.Fatalf("line %d: %s", i, l)
				}
			}
		})
	}
}

var (
	recordLine = regexp.MustCompile(`record<(\d+)>`)
	lostLine   = regexp.MustCompile(`records["=: ]+(\d+)`)
)

// account checks that each record is there or was counted at its place, and returns how
// many lines say that some are missing.
func account(t *testing.T, lines []string, records int) (tellings int) {
	t.Helper()
	next := 0
	for _, l := range lines {
		if m := recordLine.FindStringSubmatch(l); m != nil {
			if m[1] != strconv.Itoa(next) {
				t.Fatalf("record %s comes where %d should", m[1], next)
			}
			next++
			continue
		}
		m := lostLine.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("what is this? %.200s", l)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		next += n
		tellings++
	}
	if next != records {
		t.Errorf("%d records are accounted for, of %d", next, records)
	}
	return tellings
}

// TestBounded: what is not taken is kept up to a number of bytes, however large the
// records are, and one line says what is missing, whatever the level is.
func TestBounded(t *testing.T) {
	for _, format := range formats {
		for _, size := range []int{10, 5_000} {
			t.Run(fmt.Sprintf("%s/%d", format, size), func(t *testing.T) {
				h := newHanging()
				log := logger(t, slog.LevelError, format, h, h.send)
				q := small(log)
				ballast := strings.Repeat("x", size)
				records := 3 * q.limit / (size + overhead)
				for i := range records {
					log.Error(fmt.Sprintf("record<%d>", i), "ballast", ballast)
				}
				lost := Dropped(log)
				q.mu.Lock()
				if q.bytes > q.limit || len(q.entries) > q.limit/overhead {
					t.Errorf("%d bytes in %d entries are kept", q.bytes, len(q.entries))
				}
				q.mu.Unlock()
				if lost < uint64(records)/4 || lost > uint64(records)*9/10 {
					t.Errorf("%d of %d records were dropped", lost, records)
				}
				close(h.goOn)
				Flush(log)
				log.Error(fmt.Sprintf("record<%d>", records))
				Flush(log)
				if n := account(t, h.lines(), records+1); n != 1 {
					t.Errorf("%d lines say that records are missing", n)
				}
				if got := Dropped(log); got != lost {
					t.Errorf("%d were dropped, and after that %d", lost, got)
				}
			})
		}
	}
}

// stepping takes one line each time that it is let.
type stepping struct {
	hanging
	taken chan struct{}
}

func (s *stepping) Write(p []byte) (int, error) {
	n, err := s.hanging.Write(p)
	s.taken <- struct{}{}
	return n, err
}

// TestSlowReader: with somebody who takes one line for each two that are logged the log does
// not become one of lines about lines that are missing.
func TestSlowReader(t *testing.T) {
	s := &stepping{hanging: *newHanging(), taken: make(chan struct{}, 1000)}
	log := logger(t, slog.LevelInfo, "text", s, noJournald)
	ballast := strings.Repeat("x", small(log).limit/100-overhead)
	const records = 1200
	for i := range records {
		log.Info(fmt.Sprintf("record<%d>", i), "ballast", ballast)
		if i > 200 && i%2 == 0 {
			s.goOn <- struct{}{}
			<-s.taken
		}
	}
	if Dropped(log) == 0 {
		t.Fatal("nothing was dropped")
	}
	close(s.goOn)
	Flush(log)
	if n := account(t, s.lines(), records); n < 2 || n > 10 {
		t.Errorf("%d lines say that records are missing", n)
	}
}

// TestTooLarge: a record that is larger than the queue is missing, and that is said at
// once.
func TestTooLarge(t *testing.T) {
	r, w := io.Pipe()
	log := logger(t, slog.LevelInfo, "text", w, noJournald)
	log.Info("huge", "ballast", strings.Repeat("x", maxQueued))
	b := make([]byte, 4096)
	n, err := r.Read(b)
	if err != nil || !strings.Contains(string(b[:n]), "event=log-lost records=1\n") {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// TestWrittenAtOnce: nobody has to log once more, or to flush.
func TestWrittenAtOnce(t *testing.T) {
	r, w := io.Pipe()
	log := logger(t, slog.LevelInfo, "text", w, noJournald)
	b := make([]byte, 4096)
	for i := range 100 {
		log.Info(fmt.Sprintf("record<%d>", i))
		if n, err := r.Read(b); err != nil || !strings.Contains(string(b[:n]), fmt.Sprintf("record<%d>", i)) {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
}

// TestEndIsBounded: neither Flush nor Close waits for who takes nothing, and what was
// logged after Close is lost.
func TestEndIsBounded(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		h := newHanging()
		log, err := newLogger(slog.LevelInfo, "text", h, noJournald)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("record<0>")
		for name, f := range map[string]func(*slog.Logger) bool{"Flush": Flush, "Close": Close} {
			start := time.Now()
			if f(log.With("of", "all loggers")) {
				t.Errorf("%s: all is written", name)
			}
			if took := time.Since(start); took != flushTime {
				t.Errorf("%s took %v", name, took)
			}
		}
		log.Info("record<1>")
		close(h.goOn)
		if !Flush(log) || !Close(log) {
			t.Error("it is not written when it is taken again")
		}
		if n := account(t, h.lines(), 2); n != 1 || Dropped(log) != 1 {
			t.Errorf("%d lines say that records are missing, and %d are", n, Dropped(log))
		}
	})
}

// TestOfOthers: a logger that New has not made has nothing to wait for.
func TestOfOthers(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if Flush(log) || Close(log) || Dropped(log) != 0 {
		t.Error("something is known of it")
	}
}

// changing is a value that its owner changes.
type changing struct{ Text string }

func (c *changing) String() string { return c.Text }

// TestValuesMayChange: a record is what its values were when it was logged, for the race
// detector too.
func TestValuesMayChange(t *testing.T) {
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			h := newHanging()
			log := logger(t, slog.LevelInfo, format, h, h.send)
			value, list := &changing{"before"}, []string{"before"}
			log.With("with", value).Info("record<0>", "value", value, "list", list, slog.Group("g", "value", value))
			value.Text, list[0] = "after", "after"
			close(h.goOn)
			Flush(log)
			if l := h.lines()[0]; strings.Contains(l, "after") || strings.Count(l, "before") != 4 {
				t.Error(l)
			}
		})
	}
}

// TestJournaldThatHangs: its socket is full, and who logs goes on.
func TestJournaldThatHangs(t *testing.T) {
	j := journald(t)
	log, err := New("info", "journal", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(log)
	// Linux has room for 10 messages that are not read, or for as many as
	// net.unix.max_dgram_qlen says, which systemd makes 512.
	const records = 2000
	for i := range records {
		log.Info(fmt.Sprintf("record<%d>", i))
	}
	for i := range records {
		if got := j.Next(t)["MESSAGE"]; got != fmt.Sprintf("record<%d>", i) {
			t.Fatalf("record %d is %q", i, got)
		}
	}
}

// BenchmarkLog is what a record costs who logs it, with a reader who takes all.
func BenchmarkLog(b *testing.B) {
	for _, format := range []string{"text", "journal"} {
		b.Run(format, func(b *testing.B) {
			log, err := newLogger(slog.LevelInfo, format, io.Discard, func(string, journal.Priority, map[string]string) error { return nil })
			if err != nil {
				b.Fatal(err)
			}
			defer Close(log)
			b.ReportAllocs()
			for b.Loop() {
				log.Info("lock granted", EventKey, "lock-granted", "lockspace", "", "name", "/srv/vm/web.img", "mode", "exclusive", "owner", "web", "pid", 799)
			}
		})
	}
}

// counting counts the calls that write to a file.
type counting struct {
	*os.File
	calls atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.calls.Add(1)
	return c.File.Write(p)
}

// BenchmarkClients is 64 clients that log a record each in turn, as the daemon does for its clients, with one processor:
// what a record costs, and how many writes it takes.
func BenchmarkClients(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	c := &counting{File: f}
	log, err := newLogger(slog.LevelInfo, "text", c, noJournald)
	if err != nil {
		b.Fatal(err)
	}
	var clients sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.N))
	for range 64 {
		clients.Go(func() {
			for left.Add(-1) >= 0 {
				log.Info("lock granted", "lockspace", "", "resource", "/var/lib/libvirt/images/disk.qcow2", "mode", "exclusive", "owner", "vm1", "pid", 4711)
				runtime.Gosched() // it waits for the next call
			}
		})
	}
	clients.Wait()
	Close(log)
	b.ReportMetric(float64(c.calls.Load())/float64(b.N), "writes/op")
	b.ReportMetric(float64(Dropped(log)), "dropped")
}

// TestOneWrite: what has gathered while the file took nothing is written with few calls, and in order.
func TestOneWrite(t *testing.T) {
	h := newHanging()
	w := &writes{hanging: h}
	log := logger(t, slog.LevelInfo, "text", w, noJournald)
	const records = 1000
	for i := range records {
		log.Info(fmt.Sprintf("record<%d>", i))
	}
	close(h.goOn)
	if !Flush(log) {
		t.Fatal("not written in a second")
	}
	account(t, h.lines(), records)
	w.hanging.mu.Lock()
	defer w.hanging.mu.Unlock()
	if w.calls > records/20 || w.longest > maxQueued/batches {
		t.Errorf("%d writes for %d records, the longest of %d bytes", w.calls, records, w.longest)
	}
}

// writes counts what it is called with.
type writes struct {
	*hanging
	calls, longest int
}

func (w *writes) Write(p []byte) (int, error) {
	n, err := w.hanging.Write(p)
	w.hanging.mu.Lock()
	defer w.hanging.mu.Unlock()
	w.calls++
	w.longest = max(w.longest, len(p))
	return n, err
}
