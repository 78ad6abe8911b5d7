package peers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// complete checks that d gets exactly what all these nodes hold.
func complete(t *testing.T, d *daemon, nodes ...int) {
	t.Helper()
	list, err := d.ask()
	if err != nil || len(list) != len(nodes) {
		t.Errorf("node %d got %d entries of %d: %v", d.node, len(list), len(nodes), err)
	}
	for _, node := range nodes {
		n, o := of(list, node), d.w.nodes[node]
		if n == nil || n.Err != nil || n.Name != fmt.Sprintf("node%d", node) {
			t.Errorf("node %d got of node %d: %+v", d.node, node, n)
			continue
		}
		if !slices.Equal(o.held, n.Holdings) {
			t.Errorf("node %d got %d holdings of node %d, which holds %d", d.node, len(n.Holdings), node, len(o.held))
		}
	}
}

func TestMembers(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		for i := 1; i <= 3; i++ {
			list := w.nodes[i].Members()
			if len(list) != 3 {
				t.Fatalf("node %d sees %+v", i, list)
			}
			for j, m := range list {
				if m.Node != uint32(j+1) || m.Self != (i == j+1) || !m.Known || m.Info != w.nodes[j+1].info() || m.Protocol != Protocol || !m.Silent.IsZero() || m.Since.IsZero() || m.PID == 0 {
					t.Errorf("node %d sees %+v", i, m)
				}
			}
		}
		drain := w.nodes[2].info()
		drain.Draining = true
		w.nodes[2].Announce(drain)
		w.settle()
		if m := w.nodes[1].member(2); !m.Draining {
			t.Errorf("node 2 said that it drains, and node 1 knows %+v", m)
		}
		w.nodes[3].stop()
		w.nodes[3] = nil
		w.settle()
		if m := w.nodes[1].member(3); m != nil {
			t.Errorf("node 3 has left, and node 1 knows %+v", m)
		}
		complete(t, w.nodes[1], 1, 2)
		w.nodes[3] = w.start(3)
		w.settle()
		for i := 1; i <= 3; i++ {
			complete(t, w.nodes[i], 1, 2, 3)
		}
	})
}

func TestHolders(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		began := time.Now()
		for i := 1; i <= 3; i++ {
			want := []Holding{w.nodes[1].holding("common", "shared"), w.nodes[2].holding("common", "shared"), w.nodes[3].holding("common", "shared")}
			if diff := cmp.Diff(want, w.nodes[i].holders(t, "common")); diff != "" {
				t.Errorf("node %d: %s", i, diff)
			}
			if diff := cmp.Diff([]Holding{w.nodes[2].holding("own", "exclusive")}, w.nodes[i].holders(t, "own 2")); diff != "" {
				t.Errorf("node %d: %s", i, diff)
			}
			if got := w.nodes[i].holders(t, "nobody's"); len(got) != 0 {
				t.Errorf("node %d: %+v", i, got)
			}
			if got := w.nodes[i].holders(t, string(make([]byte, 65))); got != nil {
				t.Errorf("node %d: %+v", i, got)
			}
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("it waited %v though all answered", d)
		}
	})
}

// 10,000 locks on each of three nodes: everything arrives.
func TestMany(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		for _, d := range w.nodes[1:] {
			var list []Holding
			for i := range 10_000 {
				list = append(list, d.holding(fmt.Sprintf("%d disk %d with a name of some length, so that there are pages", d.node, i), "exclusive"))
				list[i].Resource = fmt.Sprintf("%d %d", d.node, i)
			}
			d.set(list)
		}
		for i := 1; i <= 3; i++ {
			complete(t, w.nodes[i], 1, 2, 3)
		}
		if got := w.nodes[1].holders(t, "3 9999"); len(got) != 1 || got[0].Node != 3 {
			t.Errorf("holders: %+v", got)
		}
	})
}

// A frozen peer is waited for as long as the context allows, named, and not waited for by the next lookup.
func TestFrozen(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.nodes[3].process.Freeze()
		began := time.Now()
		list, err := w.nodes[1].ask()
		if took := time.Since(began); took != time.Second || err != nil {
			t.Errorf("%v after %v", err, took)
		}
		if n := of(list, 3); n == nil || !errors.Is(n.Err, ErrNoAnswer) || n.Name != "node3" || len(n.Holdings) != 0 {
			t.Errorf("of node 3: %+v", n)
		}
		if n := of(list, 2); n == nil || n.Err != nil || len(n.Holdings) != 2 {
			t.Errorf("of node 2: %+v", n)
		}
		if m := w.nodes[1].member(3); m.Silent.IsZero() {
			t.Errorf("node 3 is not silent: %+v", m)
		}
		began = time.Now()
		if got := w.nodes[1].holders(t, "common"); len(got) != 2 || time.Since(began) != 0 {
			t.Errorf("%d holders after %v", len(got), time.Since(began))
		}
		// Node 2 has asked nothing: to it node 3 is silent after three beats.
		time.Sleep(silentAfter + time.Second)
		if m := w.nodes[2].member(3); m.Silent.IsZero() || time.Since(m.Silent) <= silentAfter {
			t.Errorf("node 3 is not silent: %+v", m)
		}
		if m := w.nodes[2].member(1); !m.Silent.IsZero() {
			t.Errorf("node 1 is silent: %+v", m)
		}
		w.nodes[3].process.Thaw()
		time.Sleep(2 * beat)
		w.settle()
		for i := 1; i <= 3; i++ {
			complete(t, w.nodes[i], 1, 2, 3)
			if m := w.nodes[1].member(i); !m.Silent.IsZero() {
				t.Errorf("node %d is still silent: %+v", i, m)
			}
		}
	})
}

// A context without a deadline gets one, so that an operator's command is answered within a second.
func TestPatience(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		w.nodes[2].process.Freeze()
		began := time.Now()
		if _, err := w.nodes[1].Holdings(context.Background()); err != nil || time.Since(began) >= time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// Who dies, or loses its node, while it is asked is named at once.
func TestLost(t *testing.T) {
	for what, lose := range map[string]func(w *world){
		"process": func(w *world) { w.nodes[3].process.Kill() },
		"node":    func(w *world) { w.Node(3).StopCorosync() },
		"cut off": func(w *world) { w.Partition([]int{1, 2}, []int{3}) },
	} {
		t.Run(what, func(t *testing.T) {
			fakeclock.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				defer w.end()
				w.nodes[3].process.Freeze()
				time.AfterFunc(100*time.Millisecond, func() { lose(w) })
				began := time.Now()
				list, err := w.nodes[1].ask()
				if n := of(list, 3); err != nil || n == nil || !errors.Is(n.Err, ErrLeft) || time.Since(began) != 100*time.Millisecond {
					t.Errorf("%+v, %v after %v", n, err, time.Since(began))
				}
				complete(t, w.nodes[1], 1, 2)
			})
		})
	}
}

// A node is absent when its daemon has been away for longer than a restart takes.
func TestAbsent(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		absent := func(want bool, node int) {
			t.Helper()
			if got := w.nodes[1].Absent(uint32(node)); got != want {
				t.Errorf("node %d is absent: %v", node, got)
			}
		}
		absent(false, 4)        // it may just not have come yet
		time.Sleep(absentAfter) // by the bubble's clock: it is not called absent earlier
		absent(true, 4)
		absent(false, 2)
		w.nodes[2].stop()
		w.nodes[2] = nil
		w.settle()
		absent(false, 2)
		time.Sleep(absentAfter) // by the bubble's clock: it is not called absent earlier
		absent(true, 2)
		w.nodes[2] = w.start(2)
		w.settle()
		absent(false, 2)
		w.Node(1).StopCorosync() // now nobody is seen, which says nothing
		time.Sleep(absentAfter)  // by the bubble's clock: it is not called absent earlier
		absent(false, 3)
		w.Node(1).StartCorosync()
		w.settle()
		absent(false, 4)
		if n := len(w.nodes[1].left); n > 3 {
			t.Errorf("it remembers %d nodes", n)
		}
	})
}

// Corosync ends and comes back on one node: meanwhile it knows of itself only, and says so.
func TestRestart(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		for range 3 {
			w.Node(1).StopCorosync()
			w.settle()
			list, err := w.nodes[1].ask()
			if !errors.Is(err, corosync.ErrDown) || len(list) != 1 || list[0].Err != nil || len(list[0].Holdings) != 2 {
				t.Errorf("without corosync: %+v, %v", list, err)
			}
			if got := w.nodes[1].holders(t, "common"); len(got) != 1 {
				t.Errorf("without corosync: %+v", got)
			}
			if w.nodes[1].Connected() || len(w.nodes[1].Members()) != 0 {
				t.Error("without corosync it is connected")
			}
			complete(t, w.nodes[2], 2, 3)
			w.Node(1).StartCorosync()
			time.Sleep(10 * time.Second)
			w.settle()
			for i := 1; i <= 3; i++ {
				complete(t, w.nodes[i], 1, 2, 3)
			}
		}
	})
}

// Parts of a cluster that met again know each other again.
func TestPartition(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		w.Partition([]int{1}, []int{2, 3})
		w.settle()
		complete(t, w.nodes[1], 1)
		complete(t, w.nodes[2], 2, 3)
		w.Heal()
		w.settle()
		for i := 1; i <= 3; i++ {
			complete(t, w.nodes[i], 1, 2, 3)
		}
	})
}

// A corosync that hangs hangs no question; neither does the daemon's own function.
func TestHang(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		w.Node(1).Suspend()
		began := time.Now()
		list, err := w.nodes[1].ask()
		if took := time.Since(began); took > time.Second || err == nil || of(list, 1) == nil || of(list, 1).Err != nil {
			t.Errorf("%+v, %v after %v", list, err, took)
		}
		w.Node(1).Resume()
		time.Sleep(time.Minute)
		w.settle()
		complete(t, w.nodes[1], 1, 2)

		hang := make(chan struct{})
		for _, d := range w.nodes[1:] {
			d.mu.Lock()
			d.hang = hang
			d.mu.Unlock()
		}
		for range 5 {
			began = time.Now()
			list, err = w.nodes[1].ask()
			if err != nil || time.Since(began) != time.Second || !errors.Is(of(list, 1).Err, ErrNoAnswer) || !errors.Is(of(list, 2).Err, ErrNoAnswer) {
				t.Errorf("%+v, %v after %v", list, err, time.Since(began))
			}
		}
		close(hang)
		for _, d := range w.nodes[1:] {
			d.mu.Lock()
			d.hang = nil
			d.mu.Unlock()
		}
		w.settle()
		complete(t, w.nodes[1], 1, 2)
	})
}

// A daemon whose own function hangs can be stopped.
func TestStopWhileHanging(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		hang := make(chan struct{})
		defer close(hang)
		w.nodes[2].mu.Lock()
		w.nodes[2].hang = hang
		w.nodes[2].mu.Unlock()
		if list, err := w.nodes[1].ask(); err != nil || !errors.Is(of(list, 2).Err, ErrNoAnswer) {
			t.Errorf("%+v, %v", list, err)
		}
		began := time.Now()
		w.nodes[2].stop()
		w.nodes[2] = nil
		if took := time.Since(began); took > partingPatience {
			t.Errorf("stopping took %v", took)
		}
		w.settle()
		if w.nodes[1].member(2) != nil {
			t.Error("it is still a member")
		}
	})
}

// More questions at once than are allowed wait for their turn, and end with their contexts.
func TestQuestionsAreBounded(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		w.nodes[2].process.Freeze()
		results := make(chan error)
		ask := func(patience time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := w.nodes[1].Holdings(ctx)
			results <- err
		}
		for range maxLists {
			go ask(2 * time.Second)
		}
		fakeclock.Wait()
		for range 3 {
			go ask(time.Second)
		}
		for range 3 {
			if err := <-results; !errors.Is(err, ErrBusy) {
				t.Errorf("one too many got %v", err)
			}
		}
		for range maxLists {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}
