package corosync_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// next is the next event; in a bubble, waiting for ever is a failure of its own.
func next[E corosync.Event](t *testing.T, events <-chan corosync.Event) E {
	t.Helper()
	ev, ok := (<-events).(E)
	if !ok {
		t.Fatalf("got %T %+v, want %T", ev, ev, *new(E))
	}
	return ev
}

func join(t *testing.T, sys corosync.System, opts corosync.Options) *corosync.Group {
	t.Helper()
	g, err := corosync.Join(t.Context(), sys, "g", opts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The pauses between attempts grow to their limit, and every attempt says Down.
func TestRetry(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(1)
		c.Node(1).StopCorosync()
		p := c.Node(1).NewProcess()
		opts := corosync.Options{MinRetry: time.Second, MaxRetry: 10 * time.Second}
		if _, err := corosync.Join(t.Context(), p, "g", opts); !errors.Is(err, corosync.ErrNotRunning) {
			t.Fatal(err)
		}
		opts.Background = true
		g := join(t, p, opts)
		defer func() { must(t, g.Close(t.Context())) }()
		began := time.Now()
		var at []time.Duration
		for range 7 {
			if d := next[corosync.Down](t, g.Events()); !errors.Is(d.Err, corosync.ErrNotRunning) {
				t.Errorf("down: %v", d.Err)
			}
			at = append(at, time.Since(began)/time.Second)
		}
		if want := []time.Duration{0, 1, 3, 7, 15, 25, 35}; !slices.Equal(at, want) {
			t.Errorf("attempts after %d seconds, want %d", at, want)
		}
		c.Node(1).StartCorosync()
		next[corosync.Up](t, g.Events())
		next[corosync.Membership](t, g.Events())
		// Having been up for long, it begins with short pauses again.
		time.Sleep(time.Minute)
		c.Node(1).StopCorosync()
		next[corosync.Down](t, g.Events())
		lost := time.Now()
		next[corosync.Down](t, g.Events())
		if d := time.Since(lost); d != time.Second {
			t.Errorf("first attempt after %v", d)
		}
	})
}

// Corosync that hangs is Down after Patience; no second connection is tried meanwhile.
func TestHang(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(1)
		p := c.Node(1).NewProcess()
		g := join(t, p, corosync.Options{Patience: 3 * time.Second})
		next[corosync.Up](t, g.Events())
		next[corosync.Membership](t, g.Events())
		c.Node(1).Suspend()
		began := time.Now()
		result := make(chan error)
		go func() { result <- g.Send(t.Context(), []byte("x")) }()
		if d := next[corosync.Down](t, g.Events()); !errors.Is(d.Err, corosync.ErrNoAnswer) {
			t.Errorf("down: %v", d.Err)
		}
		if err := <-result; !errors.Is(err, corosync.ErrDown) {
			t.Errorf("send: %v", err)
		}
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("after %v", d)
		}
		if err := g.Send(t.Context(), []byte("x")); !errors.Is(err, corosync.ErrDown) {
			t.Errorf("send: %v", err)
		}
		time.Sleep(time.Hour)
		fakeclock.Wait()
		select {
		case ev := <-g.Events():
			t.Errorf("it tried again while the old connection hangs: %T %+v", ev, ev)
		default:
		}
		c.Node(1).Resume()
		next[corosync.Up](t, g.Events())
		next[corosync.Membership](t, g.Events())
		must(t, g.Close(t.Context()))
	})
}

// A process that hangs in connecting can be closed.
func TestCloseWhileConnecting(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(1)
		p := c.Node(1).NewProcess()
		c.Node(1).Suspend()
		g := join(t, p, corosync.Options{Background: true, Patience: 3 * time.Second})
		began := time.Now()
		if err := g.Close(context.Background()); !errors.Is(err, corosync.ErrNoAnswer) || time.Since(began) != 3*time.Second {
			t.Errorf("close: %v after %v", err, time.Since(began))
		}
		if ev, ok := <-g.Events(); ok {
			t.Errorf("an event after Close: %T", ev)
		}
		c.Node(1).Resume()
		must(t, g.Close(context.Background()))
		// Nothing is left in the group.
		other := join(t, c.Node(1).NewProcess(), corosync.Options{})
		next[corosync.Up](t, other.Events())
		if m := next[corosync.Membership](t, other.Events()); len(m.Members) != 1 {
			t.Errorf("members: %v", m.Members)
		}
		must(t, other.Close(t.Context()))
	})
}

// A program that takes nothing is thrown out, and starts anew. Nothing grows.
func TestSlow(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(2)
		slow := join(t, c.Node(1).NewProcess(), corosync.Options{MaxMessage: 1000, Queue: 100_000})
		fast := join(t, c.Node(2).NewProcess(), corosync.Options{MaxMessage: 1000})
		next[corosync.Up](t, fast.Events())
		next[corosync.Membership](t, fast.Events())
		self, _ := slow.Self()
		lost := 0
		for range 2000 {
			must(t, fast.Send(t.Context(), bytes.Repeat([]byte("x"), 1000)))
			fakeclock.Wait()
		drain:
			for {
				select {
				case ev := <-fast.Events():
					if v, is := ev.(corosync.Membership); is && len(v.Left) > 0 {
						if v.Left[0].Member != self || v.Left[0].Reason != corosync.ReasonLeave {
							t.Fatalf("left: %+v", v.Left)
						}
						lost++
					}
				default:
					break drain
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		if lost < 2 || lost > 20 {
			t.Errorf("the slow one was thrown out %d times", lost)
		}
		// It now takes what waits: first of all, perhaps, an event that was on its way, and then a Down with the reason.
		found, bytes := false, 0
		for !found {
			switch ev := (<-slow.Events()).(type) {
			case corosync.Down:
				found = true
				if !errors.Is(ev.Err, corosync.ErrSlow) {
					t.Errorf("down: %v", ev.Err)
				}
			case corosync.Message:
				bytes += len(ev.Data)
			}
		}
		if bytes > 100_000 {
			t.Errorf("%d bytes waited", bytes)
		}
		must(t, slow.Close(t.Context()))
		must(t, fast.Close(t.Context()))
	})
}

// A busy corosync makes Send and Join wait as long as their contexts last, and hears the messages in order afterwards.
func TestBusy(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(1)
		p := c.Node(1).NewProcess()
		c.Node(1).SetBusy(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := corosync.Join(ctx, p, "g", corosync.Options{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("join: %v", err)
		}
		c.Node(1).SetBusy(false)
		time.Sleep(time.Minute)
		g := join(t, p, corosync.Options{})
		next[corosync.Up](t, g.Events())
		next[corosync.Membership](t, g.Events())
		c.Node(1).SetBusy(true)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := g.Send(ctx, []byte("given up")); !errors.Is(err, corosync.ErrTryAgain) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("send: %v after %v", err, time.Since(began))
		}
		results := make(chan error)
		for range 3 {
			go func() { results <- g.Send(t.Context(), []byte("waits")) }()
		}
		time.Sleep(time.Minute)
		c.Node(1).SetBusy(false)
		for range 3 {
			must(t, <-results)
			if m := next[corosync.Message](t, g.Events()); string(m.Data) != "waits" {
				t.Errorf("got %q", m.Data)
			}
		}
		must(t, g.Close(t.Context()))
	})
}

// Messages that are too long for the receiver do not reach it.
func TestLongMessage(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(1)
		g := join(t, c.Node(1).NewProcess(), corosync.Options{MaxMessage: 100})
		next[corosync.Up](t, g.Events())
		next[corosync.Membership](t, g.Events())
		from := corosync.Member{Node: 7, PID: 8}
		c.Node(1).Forge("g", from, make([]byte, 101))
		c.Node(1).Forge("g", from, make([]byte, 100))
		if m := next[corosync.Message](t, g.Events()); len(m.Data) != 100 || m.From != from {
			t.Errorf("got %d bytes from %v", len(m.Data), m.From)
		}
		must(t, g.Close(t.Context()))
	})
}

// The quorum's snapshot is void when corosync is gone, and when it hangs.
func TestQuorumDown(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(3)
		q, err := corosync.Track(t.Context(), c.Node(1).NewProcess(), corosync.Options{})
		must(t, err)
		next[corosync.Up](t, q.Events())
		if r := next[corosync.Ring](t, q.Events()); !r.Quorate || len(r.Members) != 3 {
			t.Errorf("ring: %+v", r)
		}
		c.Partition([]int{1}, []int{2, 3})
		if r := next[corosync.Ring](t, q.Events()); !r.Quorate || !slices.Equal(r.Left, []uint32{2, 3}) {
			t.Errorf("first the membership changes: %+v", r)
		}
		if r := next[corosync.Ring](t, q.Events()); r.Quorate || r.Left != nil {
			t.Errorf("then the quorum: %+v", r)
		}
		r, err := q.Ring()
		if err != nil || r.Quorate || !slices.Equal(r.Members, []uint32{1}) {
			t.Errorf("snapshot: %+v, %v", r, err)
		}
		r.Members[0] = 99
		if again, _ := q.Ring(); again.Members[0] != 1 {
			t.Error("the caller of Ring can change the next one's")
		}
		c.Node(1).StopCorosync()
		next[corosync.Down](t, q.Events())
		if _, err := q.Ring(); !errors.Is(err, corosync.ErrDown) {
			t.Errorf("snapshot: %v", err)
		}
		must(t, q.Close(t.Context()))
	})
}

// Questions to a cmap that hangs end with their contexts, and leave one goroutine behind, not one each.
func TestCmapHangs(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c := corosynctest.NewCluster(2)
		m := corosync.NewCmap(c.Node(1).NewProcess())
		c.Node(1).Suspend()
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := m.Get(ctx, "totem.cluster_name"); !errors.Is(err, corosync.ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("get: %v", err)
			}
			cancel()
		}
		c.Node(1).Resume()
		c.Node(1).Set("a.b.text", corosync.TextValue("12"))
		c.Node(1).Set("a.b.int", corosync.IntValue(-5))
		c.Node(1).Set("a.b.big", corosync.UintValue(1<<40))
		if n, err := m.Uint32(t.Context(), "a.b.text"); n != 12 || err != nil {
			t.Errorf("digits as a number: %d, %v", n, err)
		}
		for _, key := range []string{"a.b.int", "a.b.big"} {
			if n, err := m.Uint32(t.Context(), key); !errors.Is(err, corosync.ErrInvalid) {
				t.Errorf("%s as a number of 32 bits: %d, %v", key, n, err)
			}
		}
		all, err := m.List(t.Context(), "a.b.")
		if got := fmt.Sprint(all); err != nil || got != "map[a.b.big:1099511627776 a.b.int:-5 a.b.text:12]" {
			t.Errorf("list: %s, %v", got, err)
		}
		nodes, err := m.Nodes(t.Context())
		if got := fmt.Sprint(nodes); err != nil || got != "[{1 node1 192.0.2.1} {2 node2 192.0.2.2}]" {
			t.Errorf("nodes: %s, %v", got, err)
		}
	})
}
