package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// serve serves a world on a socket, until the test ends.
func (w *world) serve() (path string, c *Client) {
	w.t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ctl")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "sock")
	l, err := rpc.Listen(path)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.s.Serve(l) }()
	c = NewClient(path)
	w.t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.s.Close(ctx); err != nil {
			w.t.Errorf("close: %v", err)
		}
		if err := <-done; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
	return path, c
}

func TestClientAndServer(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.More = map[string]http.Handler{"/metrics": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") })}
	})
	path, c := w.serve()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	ctx := t.Context()
	if st, err := c.Status(ctx); err != nil || st.Version != "1" || st.PID != os.Getpid() || st.Node != "host" {
		t.Errorf("%+v, %v", st, err)
	}
	w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
	if h, err := c.Holders(ctx, url.Values{"vm": {"web"}}); err != nil || len(h.Holders) != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	space := ""
	if h, err := c.Who(ctx, []string{"/a"}, &space); err != nil || len(h.Holders) != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	if r, err := c.Refused(ctx); err != nil || len(r.Refused) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if d, err := c.Drained(ctx); err != nil || d.Draining {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := c.Drain(ctx, DrainRequest{Reason: "x"}); err != nil || !d.Draining || d.By == "" {
		t.Errorf("%+v, %v", d, err)
	}
	var e *Error
	if _, err := c.Release(ctx, ReleaseRequest{Resource: "/b"}); !errors.As(err, &e) || e.Code != CodeNotHeld {
		t.Errorf("%v", err)
	}
	if r, err := c.Release(ctx, ReleaseRequest{Resource: "/a"}); err != nil || len(r.Released) != 1 || w.audit.told[2].Who.PID != int32(os.Getpid()) {
		t.Errorf("%+v, %v, audited %+v", r, err, w.audit.told)
	}
	resp, err := c.do(ctx, http.MethodGet, "/metrics", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(text) != "up 1\n" {
		t.Errorf("metrics: %q", text)
	}
	if _, err := NewClient(path + "x").Status(ctx); !errors.As(err, &e) || e.Code != CodeUnavailable {
		t.Errorf("no socket: %v", err)
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t, nil)
	_, c := w.serve()
	w.ev.Observe(event(locking.Granted, "/before"))
	begun := make(chan struct{})
	lines := make(chan Line)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, nil, func(string, uint64) { close(begun) }, func(l Line) error { lines <- l; return nil })
	}()
	<-begun
	w.ev.Observe(event(locking.Refused, "/a"))
	if l := <-lines; l.Event == nil || l.Kind != "refused" || l.Resource != "/a" || l.Seq != 2 {
		t.Errorf("got %+v", l)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("watch: %v", err)
	}
}

// TestWatchGoesOn: whoever comes back gets what came since, from the same daemon, or
// all that another one remembers.
func TestWatchGoesOn(t *testing.T) {
	w := newWorld(t, nil)
	_, c := w.serve()
	for range 5 {
		w.ev.Observe(event(locking.Granted, "/a"))
	}
	enough := errors.New("enough")
	watch := func(q url.Values) (first uint64, started string) {
		t.Helper()
		var since uint64
		err := c.Watch(t.Context(), q, func(text string, n uint64) { started, since = text, n }, func(l Line) error {
			first = l.Seq
			return enough
		})
		if err != enough || since+1 != first {
			t.Errorf("%v: event %d after %d, %v", q, first, since, err)
		}
		return first, started
	}
	first, started := watch(url.Values{"since": {"0"}})
	if st, err := c.Status(t.Context()); err != nil || first != 1 || started != st.Started.Format(time.RFC3339Nano) {
		t.Errorf("it begins with %d, of a daemon of %s: %v", first, started, err)
	}
	if first, _ := watch(url.Values{"since": {"3"}, "started": {started}}); first != 4 {
		t.Errorf("it goes on with %d", first)
	}
	if first, _ := watch(url.Values{"since": {"3"}, "started": {"2020-01-01T00:00:00Z"}}); first != 1 {
		t.Errorf("another daemon begins with %d", first)
	}
}

// TestSlowReader: the events do not wait for one who does not read, and it is told
// how many it has missed.
func TestSlowReader(t *testing.T) {
	w := newWorld(t, nil)
	_, c := w.serve()
	begun := make(chan struct{})
	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var seen, missed, last uint64
	const many = 50_000 // about ten megabytes: no buffer on the way has room for that
	go func() {
		done <- c.Watch(ctx, nil, func(string, uint64) { close(begun) }, func(l Line) error {
			<-hold
			missed += l.Missed
			if l.Event != nil {
				seen++
				last = l.Seq
			}
			if last == many {
				cancel()
			}
			return nil
		})
	}()
	<-begun
	for range many {
		w.ev.Observe(event(locking.Granted, "/srv/vm/"+strings.Repeat("x", 100)))
	}
	close(hold)
	if err := <-done; err != nil {
		t.Errorf("watch: %v", err)
	}
	if missed == 0 || seen+missed != many {
		t.Errorf("saw %d and was told that it missed %d of %d", seen, missed, many)
	}
}

// TestWatchersAreBounded, and leave room for others.
func TestWatchersAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	path, c := w.serve()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, maxWatchers)
	for range maxWatchers {
		begun := make(chan struct{})
		go func() {
			own := NewClient(path)
			defer own.Close()
			done <- own.Watch(ctx, nil, func(string, uint64) { close(begun) }, func(Line) error { return nil })
		}()
		<-begun
	}
	var e *Error
	if err := c.Watch(ctx, nil, func(string, uint64) {}, func(Line) error { return nil }); !errors.As(err, &e) || e.Code != CodeTooMany {
		t.Errorf("one too many: %v", err)
	}
	if st, err := c.Status(ctx); err != nil || st.Watchers != maxWatchers {
		t.Errorf("%d watchers, %v", st.Watchers, err)
	}
	cancel()
	for range maxWatchers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestClientsAreBounded: those that say nothing are cut off, and then others get
// in.
func TestClientsAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	// Longer than this process may have to wait for a processor while it reads a request.
	w.s.http.ReadHeaderTimeout = time.Second
	path, c := w.serve()
	for range 2 * maxClients {
		idle, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("behind silent clients: %v", err)
	}
}

// TestCloseEndsStreams, which would never end by themselves.
func TestCloseEndsStreams(t *testing.T) {
	w := newWorld(t, nil)
	_, c := w.serve()
	begun := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(t.Context(), nil, func(string, uint64) { close(begun) }, func(Line) error { return nil })
	}()
	<-begun
	if err := w.s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	var e *Error
	if err := <-done; !errors.As(err, &e) || e.Code != CodeUnavailable {
		t.Errorf("watch: %v", err)
	}
}
