package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

func testJoin(t *testing.T, e *env) {
	all := e.joinAll(t, 3)
	for _, m := range all {
		if self, ok := m.Self(); !ok || self != m.self || self.Node == 0 || self.PID == 0 {
			t.Errorf("self is %v, %v; Up said %v", self, ok, m.self)
		}
	}
}

func testAlone(t *testing.T, e *env) {
	p := e.start(t, 1)
	for range 3 { // a group ends with its last member, and nothing is left of it
		group := "g"
		g, err := corosync.Join(e.ctx(t), p, group, corosync.Options{})
		must(t, err)
		m := &member{Group: g, e: e, p: p}
		m.self = want[corosync.Up](t, m).Self
		v := want[corosync.Membership](t, m)
		joined(t, v, m.self, corosync.ReasonJoin)
		if !slices.Equal(v.Members, []corosync.Member{m.self}) {
			t.Errorf("members: %v", v.Members)
		}
		must(t, g.Close(e.ctx(t)))
		for ev := range g.Events() {
			t.Logf("after Close: %T", ev) // may have been on its way
		}
		if err := g.Send(e.ctx(t), []byte("x")); !errors.Is(err, corosync.ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
	}
}

func testTwice(t *testing.T, e *env) {
	all := e.joinAll(t, 1)
	_, err := corosync.Join(e.ctx(t), all[0].p, all[0].Name(), corosync.Options{})
	if !errors.Is(err, corosync.ErrMember) {
		t.Errorf("joining twice: %v", err)
	}
	if _, err := corosync.Join(e.ctx(t), all[0].p, string(make([]byte, corosync.MaxGroupName+1)), corosync.Options{}); !errors.Is(err, corosync.ErrInvalid) {
		t.Errorf("a name that is too long: %v", err)
	}
	longest := bytes.Repeat([]byte("n"), corosync.MaxGroupName)
	m := e.join(t, all[0].p, string(longest))
	want[corosync.Membership](t, m)
}

func testSend(t *testing.T, e *env) {
	all := e.joinAll(t, 2)
	ctx := e.ctx(t)
	for _, from := range all {
		for _, size := range []int{1, 2, 100, 1400, 1500, 65536} {
			data := bytes.Repeat([]byte{byte(size)}, size)
			must(t, from.Send(ctx, data))
			for _, to := range all {
				message(t, to, from.self, string(data))
			}
		}
		for _, size := range []int{0, 65537} {
			if err := from.Send(ctx, make([]byte, size)); !errors.Is(err, corosync.ErrTooBig) {
				t.Errorf("sending %d bytes: %v", size, err)
			}
		}
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := all[0].Send(canceled, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("sending with a context that has ended: %v", err)
	}
}

// All send at once, more than corosync's queues hold, and get the same sequence.
func testOrder(t *testing.T, e *env) {
	const members = 3
	each := 300
	if e.Slow {
		each = 50
	}
	all := e.joinAll(t, members)
	ctx := e.ctx(t)
	var wg sync.WaitGroup
	for i, m := range all {
		wg.Go(func() {
			for n := range each {
				data := fmt.Appendf(nil, "%d %d ", i, n)
				data = append(data, bytes.Repeat([]byte("x"), n*7%4000)...)
				if err := m.Send(ctx, data); err != nil {
					t.Errorf("message %d: %v", n, err)
					return
				}
			}
		})
	}
	got := make([][]string, members)
	for i, m := range all {
		wg.Go(func() {
			for len(got[i]) < members*each {
				select {
				case ev := <-m.Events():
					msg, ok := ev.(corosync.Message)
					if !ok {
						t.Errorf("got %T %+v", ev, ev)
						return
					}
					got[i] = append(got[i], fmt.Sprintf("%v: %s", msg.From, msg.Data))
				case <-ctx.Done():
					t.Errorf("%d of %d messages came", len(got[i]), members*each)
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range got {
		if !slices.Equal(got[i], got[0]) {
			t.Errorf("member %d got another sequence than member 0", i)
		}
	}
	next := make([]int, members)
	for _, s := range got[0] {
		for i, m := range all {
			if prefix := fmt.Sprintf("%v: %d %d ", m.self, i, next[i]); len(s) >= len(prefix) && s[:len(prefix)] == prefix {
				next[i]++
			}
		}
	}
	if !slices.Equal(next, []int{each, each, each}) {
		t.Errorf("in the order in which they were sent came %v of %d", next, each)
	}
}

// A process in two groups gets each group's messages there.
func testGroups(t *testing.T, e *env) {
	all := e.joinAll(t, 2)
	other := e.join(t, all[0].p, groupName())
	want[corosync.Membership](t, other)
	ctx := e.ctx(t)
	must(t, all[1].Send(ctx, []byte("one")))
	must(t, other.Send(ctx, []byte("two")))
	message(t, all[0], all[1].self, "one")
	message(t, all[1], all[1].self, "one")
	message(t, other, other.self, "two")
}

func testLeave(t *testing.T, e *env) {
	all := e.joinAll(t, 3)
	must(t, all[2].Close(e.ctx(t)))
	for _, m := range all[:2] {
		v := want[corosync.Membership](t, m)
		left(t, v, all[2].self, corosync.ReasonLeave)
		if len(v.Members) != 2 || len(v.Joined) != 0 {
			t.Errorf("after the leave: %+v", v)
		}
	}
}

// What a process sent before it died comes before its end.
func testProcDown(t *testing.T, e *env) {
	all := e.joinAll(t, 3)
	must(t, all[2].Send(e.ctx(t), []byte("last words")))
	for _, m := range all {
		message(t, m, all[2].self, "last words")
	}
	all[2].p.Kill()
	for _, m := range all[:2] {
		left(t, want[corosync.Membership](t, m), all[2].self, corosync.ReasonProcDown)
	}
	must(t, all[0].Send(e.ctx(t), []byte("x")))
	message(t, all[1], all[0].self, "x")
}

// testRestart: corosync ends, and starts again.
func testRestart(t *testing.T, e *env) {
	all := e.joinAll(t, 1)
	q := e.track(t, all[0].p)
	times := 2
	if e.Slow {
		times = 1
	}
	for range times {
		e.StopCorosync(t, 1)
		d := want[corosync.Down](t, all[0])
		if !errors.Is(d.Err, corosync.ErrNotRunning) {
			t.Errorf("down: %v", d.Err)
		}
		q.until(t, "down", func(ev corosync.Event) bool { _, is := ev.(corosync.Down); return is })
		if err := all[0].Send(e.ctx(t), []byte("x")); !errors.Is(err, corosync.ErrDown) {
			t.Errorf("send without corosync: %v", err)
		}
		if _, err := q.Ring(); !errors.Is(err, corosync.ErrDown) {
			t.Errorf("ring without corosync: %v", err)
		}
		if _, ok := all[0].Self(); ok {
			t.Error("without corosync there is a Self")
		}
		if _, err := corosync.NewCmap(all[0].p).Get(e.ctx(t), "totem.cluster_name"); !errors.Is(err, corosync.ErrNotRunning) {
			t.Errorf("cmap without corosync: %v", err)
		}
		if _, err := corosync.Join(e.ctx(t), all[0].p, "g", corosync.Options{}); !errors.Is(err, corosync.ErrNotRunning) {
			t.Errorf("join without corosync: %v", err)
		}
		e.StartCorosync(t, 1)
		for {
			ev := all[0].next(t)
			if up, is := ev.(corosync.Up); is {
				if up.Self != all[0].self {
					t.Errorf("after the restart it is %v, and was %v", up.Self, all[0].self)
				}
				break
			}
			if _, is := ev.(corosync.Down); !is {
				t.Fatalf("got %T %+v, want Up", ev, ev)
			}
		}
		v := want[corosync.Membership](t, all[0])
		joined(t, v, all[0].self, corosync.ReasonJoin)
		must(t, all[0].Send(e.ctx(t), []byte("again")))
		for {
			// When the ring forms with others, memberships of them may come first.
			if msg, is := all[0].next(t).(corosync.Message); is {
				if string(msg.Data) != "again" {
					t.Errorf("got %q", msg.Data)
				}
				break
			}
		}
		q.until(t, "a quorate ring of all", func(ev corosync.Event) bool {
			r, is := ev.(corosync.Ring)
			return is && r.Quorate && len(r.Members) == e.Nodes
		})
	}
}

// testSuspended: corosync hangs. Callers do not.
func testSuspended(t *testing.T, e *env) {
	all := e.joinAll(t, 1)
	m := all[0]
	e.Suspend(t, 1)
	resume := sync.OnceFunc(func() { e.Resume(t, 1) })
	t.Cleanup(resume)

	short, cancel := context.WithTimeout(e.ctx(t), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := corosync.NewCmap(m.p).Get(short, "totem.cluster_name"); !errors.Is(err, corosync.ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cmap: %v", err)
	}
	if _, err := corosync.Join(short, m.p, groupName(), corosync.Options{}); !errors.Is(err, corosync.ErrNoAnswer) {
		t.Errorf("join: %v", err)
	}
	if _, err := corosync.Track(short, m.p, corosync.Options{}); !errors.Is(err, corosync.ErrNoAnswer) {
		t.Errorf("track: %v", err)
	}
	// Corosync may take it and carry it out later.
	if err := m.Send(short, []byte("x")); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("send: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("calls of 0.2 s took %v", took)
	}
	g := m.Group
	quick, cancel2 := context.WithTimeout(e.ctx(t), 50*time.Millisecond)
	defer cancel2()
	if err := g.Close(quick); !errors.Is(err, corosync.ErrNoAnswer) {
		t.Errorf("close: %v", err)
	}
	for range g.Events() { // ends
	}
	resume()
	must(t, g.Close(e.ctx(t))) // now it does
}
