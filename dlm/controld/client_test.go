package controld_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/dlm/controld/controldtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

func TestClient(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		d := controldtest.New(3, "a", "b")
		c, ctx := d.Client(), t.Context()
		st, err := c.Status(ctx)
		if err != nil || !st.Quorate || len(st.Nodes) != 3 {
			t.Errorf("status %+v, %v", st, err)
		}
		at := time.Unix(1700000000, 0)
		d.Lose(at, true, 2, 3)
		st, err = c.Status(ctx)
		if err != nil || st.Quorate || st.Members != 1 || !st.Nodes[2].NeedFencing || !st.Nodes[2].Failed.Equal(at) {
			t.Errorf("status %+v, %v", st, err)
		}
		cfg, err := c.Config(ctx)
		if err != nil || !cfg.EnableFencing || cfg.PostJoinDelay != 30*time.Second {
			t.Errorf("config %+v, %v", cfg, err)
		}
		ls, err := c.Lockspaces(ctx)
		if err != nil || len(ls) != 2 || ls[1].Name != "b" {
			t.Errorf("lockspaces %+v, %v", ls, err)
		}
		d.Set(func(s *controldtest.State) {
			s.Lockspaces[1].Next = controld.Change{Seq: 2, Members: 2, WaitMessages: true, Missing: 1}
			s.Lockspaces[1].Flags = controld.KernelStopped
		})
		l, err := c.Lockspace(ctx, "b")
		if err != nil || !l.Changing() || l.Next.Missing != 1 || l.Next.Wait != controld.WaitNone || l.Flags != controld.KernelStopped {
			t.Errorf("lockspace %+v, %v", l, err)
		}
		nodes, err := c.Nodes(ctx, "b", controld.AllNodes)
		if err != nil || !slices.Equal([]int{1, 2, 3}, []int{nodes[0].NodeID, nodes[1].NodeID, nodes[2].NodeID}) {
			t.Errorf("nodes %+v, %v", nodes, err)
		}
		if err := c.Known(ctx, "a"); err != nil {
			t.Errorf("known: %v", err)
		}
		if err := c.Known(ctx, "c"); !errors.Is(err, controld.ErrNoLockspace) {
			t.Errorf("not known: %v", err)
		}
		if _, err := c.Lockspace(ctx, "c"); !errors.Is(err, controld.ErrNoLockspace) {
			t.Errorf("not there: %v", err)
		}
		d.Kill()
		if _, err := c.Status(ctx); !errors.Is(err, controld.ErrNotRunning) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dead: %v", err)
		}
	})
}

// TestHangs: the daemon hangs. Every call ends in time, and the questions that may be dropped do not harm it.
func TestHangs(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		d := controldtest.New(3, "a")
		d.Freeze()
		for range 20 { // more than can wait for it
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			_, err := d.Client().Status(ctx)
			cancel()
			if !errors.Is(err, controld.ErrNoAnswer) || time.Since(start) > time.Second {
				t.Fatalf("after %v: %v", time.Since(start), err)
			}
		}
		d.Thaw()
		fakeclock.Wait()
		if _, err := d.Client().Status(t.Context()); err != nil || !d.Alive() {
			t.Errorf("after the thaw: %v", err)
		}
	})
}

// TestLeavesNobodyAlone: a question that must not be dropped is not, although its caller has left.
func TestLeavesNobodyAlone(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		d := controldtest.New(3, "a")
		c := d.Client()
		d.Freeze()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Lockspace(ctx, "a"); !errors.Is(err, controld.ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Lockspaces(ctx); !errors.Is(err, controld.ErrNoAnswer) {
			t.Fatal(err)
		}
		if d.Asked() != 1 {
			t.Errorf("asked %d times", d.Asked())
		}
		d.Thaw()
		fakeclock.Wait()
		if _, err := c.Lockspace(t.Context(), "a"); err != nil || !d.Alive() {
			t.Errorf("after the thaw: %v, alive %v", err, d.Alive())
		}
	})
}

func TestBadAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		want         error
	}{
		{"nothing", "", controld.ErrNoAnswer},
		{"half a header", "\x3c\xd1\x3c\xd1", controld.ErrNoAnswer},
		{"magic", string(make([]byte, 96)), controld.ErrMalformed},
		{"version", "\x3c\xd1\x3c\xd1\x00\x00\x02\x00" + string(make([]byte, 88)), controld.ErrVersion},
		{"long", "\x3c\xd1\x3c\xd1\x01\x00\x01\x00\x0e\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff" + string(make([]byte, 76)), controld.ErrMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := controld.New(func(context.Context) (net.Conn, error) {
				client, server := net.Pipe()
				go func() {
					defer server.Close()
					var req [96]byte
					_, _ = server.Read(req[:])
					_, _ = server.Write([]byte(tc.answer))
				}()
				return client, nil
			})
			var op *controld.OpError
			if _, err := c.Config(t.Context()); !errors.Is(err, tc.want) || !errors.As(err, &op) || op.Op != "config" {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}
