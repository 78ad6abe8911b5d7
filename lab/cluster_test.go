package lab_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// soon bounds the conditions that the tests wait for. It is generous: the machine may be busy.
const soon = 90 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, errors.New("not within "+d.String()))
	t.Cleanup(cancel)
	return ctx
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCluster boots one cluster of three and does to it all that can be done to one. The order matters: each part leaves
// three quorate nodes behind.
func TestCluster(t *testing.T) {
	start := time.Now()
	l := lab.ForTest(t, lab.Config{DeviceMB: 8, Token: 3 * time.Second})
	t.Logf("three nodes are one cluster %v after the start", time.Since(start).Round(time.Millisecond))
	t.Run("members", func(t *testing.T) {
		ctx := within(t, soon)
		for _, n := range l.Nodes() {
			m, err := n.Membership(ctx)
			ok(t, err)
			if !m.Quorate || len(m.Members) != 3 {
				t.Errorf("%s: %+v", n.Name(), m)
			}
		}
	})
	t.Run("exec", func(t *testing.T) { testExec(t, l) })
	t.Run("processes", func(t *testing.T) { testProcesses(t, l) })
	t.Run("files", func(t *testing.T) { testFiles(t, l) })
	// Before there was a lockspace: see Heal.
	t.Run("cut and heal", func(t *testing.T) {
		ctx := within(t, soon)
		ok(t, l.Node(3).Cut(ctx))
		ok(t, l.Node(1).WaitMembers(ctx, 1, 2))
		ok(t, l.Node(3).WaitInquorate(ctx))
		// Commands do not need the network that was cut.
		_, err := l.Node(3).MustSucceed(ctx, "true")
		ok(t, err)
		ok(t, l.Node(3).Heal(ctx))
		ok(t, l.WaitQuorate(ctx))
	})
	t.Run("dlm", func(t *testing.T) {
		ctx := within(t, soon)
		for _, n := range l.Nodes() {
			_, err := n.MustSucceed(ctx, "dlm_tool", "join", "test")
			ok(t, err)
		}
		res, err := l.Node(1).MustSucceed(ctx, "dlm_tool", "ls")
		ok(t, err)
		if !strings.Contains(res.Stdout, "members       1 2 3") {
			t.Errorf("lockspace: %v", res)
		}
		for left := []int{1, 2, 3}; len(left) > 0; left = left[1:] {
			settled(t, l, left...)
			_, err := l.Node(left[0]).MustSucceed(ctx, "dlm_tool", "leave", "test")
			ok(t, err)
		}
	})
	t.Run("freeze", func(t *testing.T) { testFreeze(t, l) })
	t.Run("power cut and boot", func(t *testing.T) { testPowerCut(t, l) })
}

func testFreeze(t *testing.T, l *lab.Lab) {
	ctx := within(t, soon)
	n := l.Node(2)
	ok(t, n.Freeze(ctx))
	patient, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if res, err := n.Exec(patient, "true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("command in a frozen node: %v, %v", res, err)
	}
	if err := n.Boot(ctx); !errors.Is(err, lab.ErrState) {
		t.Errorf("boot of a frozen node: %v", err)
	}
	ok(t, n.Thaw(ctx))
	_, err := n.MustSucceed(ctx, "true")
	ok(t, err)
	ok(t, l.WaitQuorate(ctx))
}

func testPowerCut(t *testing.T, l *lab.Lab) {
	ctx := within(t, soon)
	n := l.Node(2)
	ok(t, n.WriteFile(ctx, lab.PrivateDir+"/kept", []byte("x"), 0o600))
	_, err := n.MustSucceed(ctx, "sync")
	ok(t, err)
	ok(t, n.WriteFile(ctx, "/root/lost", []byte("x"), 0o600))

	// A command that runs at that moment ends, and says why.
	running := make(chan error, 1)
	go func() {
		_, err := n.Exec(ctx, "sleep", "1000")
		running <- err
	}()
	ok(t, lab.WaitFor(ctx, "the command to run", func(ctx context.Context) (bool, error) {
		res, err := n.Exec(ctx, "pgrep", "-f", "^sleep 1000$")
		return res.OK(), err
	}))
	ok(t, n.PowerCut(ctx))
	if err := <-running; !errors.Is(err, lab.ErrNodeOff) {
		t.Errorf("command during the power cut: %v", err)
	}
	if _, err := n.Exec(ctx, "true"); !errors.Is(err, lab.ErrNodeOff) {
		t.Errorf("command without power: %v", err)
	}
	st, err := n.Status(ctx)
	ok(t, err)
	if st.State != lab.NodeOff {
		t.Errorf("state %s", st.State)
	}
	ok(t, l.Node(1).WaitRing(ctx, 1, 3))
	ok(t, l.Node(1).WaitMembers(ctx, 1, 3))
	ok(t, n.Boot(ctx))
	ok(t, l.WaitQuorate(ctx))
	_, err = n.ReadFile(ctx, lab.PrivateDir+"/kept")
	ok(t, err)
	if _, err := n.ReadFile(ctx, "/root/lost"); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("file in the node's memory after a power cut: %v", err)
	}
}

// TestPowerFencing shows the lab's fence agent: dlm_controld has a lost node's power cut.
func TestPowerFencing(t *testing.T) {
	l := lab.ForTest(t, lab.Config{Fencing: lab.PowerFencing, Token: 3 * time.Second})
	ctx := within(t, 2*soon)
	for _, n := range l.Nodes() {
		_, err := n.MustSucceed(ctx, "dlm_tool", "join", "test")
		ok(t, err)
	}
	ok(t, l.Node(3).Cut(ctx))
	ok(t, lab.WaitFor(ctx, "node 3 to be fenced", func(ctx context.Context) (bool, error) {
		st, err := l.Node(3).Status(ctx)
		return st.State == lab.NodeOff, err
	}))
	settled(t, l, 1, 2)
}

// settled waits until the lockspace of some nodes has just these members, and their kernels have recovered. Before that one must not
// leave: the 6.1 kernel takes three minutes for it if another one still asks it how far it is (dlm_midcomms_shutdown).
func settled(t *testing.T, l *lab.Lab, ids ...int) {
	t.Helper()
	members := "members       " + strings.Trim(fmt.Sprint(ids), "[]") + " \n"
	for _, id := range ids {
		n, last := l.Node(id), ""
		err := lab.WaitFor(within(t, soon), "the lockspace to settle on "+n.Name(), func(ctx context.Context) (bool, error) {
			recovering, err := n.Recovery(ctx, "test")
			if err != nil {
				return false, err
			}
			res, err := n.Exec(ctx, "dlm_tool", "ls")
			last = fmt.Sprint(recovering, res)
			return len(recovering) == 0 && strings.Contains(res.Stdout, members) && !strings.Contains(res.Stdout, "new change"), err
		})
		if err != nil {
			t.Fatalf("%v: %s", err, last)
		}
	}
}

// TestFiveNodes boots as many as there can be. The cluster is left out: how many
// nodes corosync has to bring together is tested with three.
func TestFiveNodes(t *testing.T) {
	start := time.Now()
	l := lab.ForTest(t, lab.Config{Nodes: lab.MaxNodes, NoCluster: true})
	t.Logf("%d nodes run commands %v after the start", lab.MaxNodes, time.Since(start).Round(time.Millisecond))
	ctx := within(t, soon)
	for _, n := range l.Nodes() {
		res, err := n.MustSucceed(ctx, "hostname")
		ok(t, err)
		if got := strings.TrimSpace(res.Stdout); got != n.Name() {
			t.Errorf("node %d calls itself %q", n.ID(), got)
		}
	}
	// All are on one network, and have one directory.
	last := l.Node(lab.MaxNodes)
	for _, n := range l.Nodes() {
		ok(t, n.WriteFile(ctx, lab.SharedDir+"/"+n.Name(), []byte("x"), 0o600))
		_, err := last.ReadFile(ctx, lab.SharedDir+"/"+n.Name())
		ok(t, err)
		if n != last {
			// Nobody listens there, which only the other node can tell.
			res, err := n.Exec(ctx, "bash", "-c", ": </dev/tcp/"+last.Addr()+"/9")
			ok(t, err)
			if !strings.Contains(res.Stderr, "refused") {
				t.Errorf("%s does not reach %s: %v", n.Name(), last.Name(), res)
			}
		}
	}
}
