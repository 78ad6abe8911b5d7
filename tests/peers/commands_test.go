package peers_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/peers"
	"github.com/vmlockd/vmlockd/lab"
)

const (
	// inTime is what a command may take, but for what a node needs to start a program: that is a tenth of it and more here,
	// and nothing on a real host.
	inTime = time.Second
	// atMost is longer than any excuse is good for.
	atMost = 10 * time.Second
	// notReached is in what is said of a host that corosync has lost, or that has no daemon.
	notReached = "it is not reached"
)

// diskOf is the disk that is held on a node.
func diskOf(node uint32) string { return fmt.Sprintf("%s/disk%d.img", lab.SharedDir, node) }

// operators are those who ask in the nodes.
type operators struct {
	*lab.Lab
	ctx   context.Context
	tooks []time.Duration // of the answers while somebody was missing
}

// TestCommands: while a host's daemon is stopped or killed, the whole host is frozen, or it is cut off, every command answers
// within a second and says who is missing: before corosync has noticed anything, while it does, and after that. So it is on
// the host that was cut off.
func TestCommands(t *testing.T) {
	// It has no guard, which would end what the lost host holds; tests/guard is about that.
	config := fmt.Sprintf("backend = \"cluster\"\nguard.mode = %q\n[[identity.rule]]\ntype = \"hostfs\"\nscope = \"cluster\"\n", lab.GuardMode())
	l := lab.ForTest(t, lab.Config{
		Nodes: nodes, VMLockd: binaries.vmlockd, VMLockdConfig: func(int) string { return config },
		Binaries: map[string]string{"vmlockctl": binaries.vmlockctl},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	o := &operators{Lab: l, ctx: ctx}
	for _, n := range l.Nodes() {
		o.must(t, os.WriteFile(filepath.Join(l.Shared(), filepath.Base(diskOf(uint32(n.ID())))), []byte("x"), 0o600))
	}
	for _, n := range l.Nodes() {
		o.hold(t, n)
	}
	o.healthy(t)
	daemon := l.Node(3).Service(lab.ServiceLock)

	t.Run("DaemonStopped", func(t *testing.T) {
		o.must(t, daemon.Signal(ctx, syscall.SIGSTOP))
		for range 4 {
			o.round(t, 1, 3)
		}
		o.shows(t, 1, `vmlockd_peers 2`, `vmlockd_peers_silent 1`, `vmlockd_cluster_quorate 1`, `vmlockd_locks_held{mode="exclusive"} 1`)
		o.must(t, daemon.Signal(ctx, syscall.SIGCONT))
		o.healthy(t)
	})
	t.Run("DaemonKilled", func(t *testing.T) {
		o.must(t, daemon.Kill(ctx))
		for range 4 {
			o.round(t, 1, 3)
		}
		o.shows(t, 1, `vmlockd_peers 1`, `vmlockd_peers_silent 0`)
		o.must(t, daemon.Start(ctx))
		o.healthy(t)
	})
	t.Run("NodeFrozen", func(t *testing.T) {
		o.must(t, l.Node(3).Freeze(ctx))
		o.untilLost(t, map[int][]uint32{1: {3}})
		// Thawed, it would be told that the others went on without it: see lab.Node.Heal.
		o.must(t, l.Node(3).PowerCut(ctx))
		for _, id := range []int{1, 2} {
			o.must(t, l.Node(id).WaitRing(ctx, 1, 2)) // see lab.Node.Boot
			o.must(t, l.Node(id).WaitMembers(ctx, 1, 2))
		}
		o.must(t, l.Node(3).Boot(ctx))
		o.must(t, l.WaitQuorate(ctx))
		o.hold(t, l.Node(3))
		o.healthy(t)
	})
	t.Run("NodeCutOff", func(t *testing.T) { // last: it leaves a node that must be rebooted
		o.must(t, l.Node(3).Cut(ctx))
		o.untilLost(t, map[int][]uint32{1: {3}, 3: {1, 2}})
	})
	slices.Sort(o.tooks)
	median, most := o.tooks[len(o.tooks)/2], o.tooks[len(o.tooks)-1]
	t.Logf("%d answers while somebody was missing: half of them within %v, all within %v", len(o.tooks), median, most)
	// What the daemon may take is held to in virtual time (internal/control, TestEverythingAnswersSoon). Here a program
	// shares a processor with all that a node does, so one answer tells little.
	if median > inTime || most > atMost {
		t.Errorf("want half of them within %v, and all within %v", inTime, atMost)
	}
}

func (o *operators) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hold has a process of a node hold its disk, from soon on: while nodes join one after the other, locks are refused now and then.
func (o *operators) hold(t *testing.T, n *lab.Node) {
	t.Helper()
	_, err := n.Start(o.ctx, "holder", "sh", "-c", fmt.Sprintf("for try in $(seq 600); do vmlockctl run --name held%d %s -- sleep 3600 && break; sleep 0.2; done", n.ID(), diskOf(uint32(n.ID()))))
	o.must(t, err)
}

// healthy waits until every node shows what all hold.
func (o *operators) healthy(t *testing.T) {
	t.Helper()
	for _, n := range o.Nodes() {
		o.round(t, n.ID())
	}
}

// untilLost asks in nodes from when some do not answer until corosync has lost them, and three times more. Who has gone, as each
// of these nodes sees it, is in gone.
func (o *operators) untilLost(t *testing.T, gone map[int][]uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(o.ctx, 2*time.Minute)
	defer cancel()
	// Each of them once at first: all the questions to one take seconds on a busy machine, and corosync notices meanwhile.
	for from, ids := range gone {
		said, err := o.question(t, from, []string{"ls", "--cluster"}, ids...)
		t.Logf("%s node %d says: %s (%v)", time.Now().UTC().Format("15:04:05.000"), from, said, err)
		if !strings.Contains(said, peers.ErrNoAnswer.Error()) {
			t.Errorf("node %d was not asked before corosync had noticed: it says %q", from, said)
		}
	}
	for {
		lost := true
		for from, ids := range gone {
			said, err := o.questions(t, from, ids...)
			t.Logf("%s node %d says: %s (%v)", time.Now().UTC().Format("15:04:05.000"), from, said, err)
			lost = lost && strings.Contains(said, notReached)
		}
		if lost {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("corosync does not lose the host")
		}
	}
	for range 3 {
		for from, ids := range gone {
			o.round(t, from, ids...)
		}
	}
}

// round asks in a node until nothing is missing but what is gone.
func (o *operators) round(t *testing.T, from int, gone ...uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(o.ctx, time.Minute)
	defer cancel()
	var last error
	err := lab.WaitFor(ctx, fmt.Sprintf("the answers of node %d to lack nothing but nodes %v", from, gone), func(context.Context) (bool, error) {
		_, last = o.questions(t, from, gone...)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%v; last: %v", err, last)
	}
}

// questions runs each command in a node. None may hide who is gone. It returns what is said of the first of those, and in an error
// what an answer lacks besides.
func (o *operators) questions(t *testing.T, from int, gone ...uint32) (said string, lacks error) {
	t.Helper()
	disk := diskOf(shown(gone))
	// status knows who is silent from what the others have asked.
	for _, args := range [][]string{{"ls", "--cluster"}, {"who", disk}, {"identify", "--cluster", disk}, {"status"}} {
		why, err := o.question(t, from, args, gone...)
		if args[0] == "ls" {
			said = why
		}
		lacks = cmp.Or(lacks, err)
	}
	return said, lacks
}

// question runs one command in a node, see questions.
func (o *operators) question(t *testing.T, from int, args []string, gone ...uint32) (said string, lacks error) {
	t.Helper()
	res := o.ask(t, from, args...)
	if took := res.Took; len(gone) > 0 {
		o.tooks = append(o.tooks, took)
		if took > inTime {
			t.Logf("slow: node %d, %q: %v", from, args, took)
		}
	}
	said, lacks = judge(args[0], res.Status, []byte(res.Stdout), gone...)
	if lacks != nil && !errors.Is(lacks, errLess) {
		t.Fatalf("node %d, where nodes %v are gone, %q: %v: %v", from, gone, args, lacks, res)
	}
	return said, lacks
}

// shows waits until the metrics of a node's daemon have these lines.
func (o *operators) shows(t *testing.T, node int, lines ...string) {
	t.Helper()
	client := o.Node(node).HTTPClient("/run/vmlockd/control.sock")
	ctx, cancel := context.WithTimeout(o.ctx, time.Minute)
	defer cancel()
	var text []byte
	err := lab.WaitFor(ctx, fmt.Sprintf("metrics %q of node %d", lines, node), func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vmlockd/metrics", nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		text, err = io.ReadAll(resp.Body)
		for _, line := range lines {
			if !strings.Contains("\n"+string(text), "\n"+line+"\n") {
				return false, err
			}
		}
		return true, err
	})
	if err != nil {
		t.Fatalf("%v; last: %s", err, text)
	}
}

// ask runs a command in a node. What it takes to start a program there is not in Took.
func (o *operators) ask(t *testing.T, node int, args ...string) lab.Result {
	t.Helper()
	start, err := o.Node(node).MustSucceed(o.ctx, "vmlockctl", "--version")
	o.must(t, err)
	res, err := o.Node(node).Exec(o.ctx, "vmlockctl", append(args, "--json")...)
	o.must(t, err)
	res.Took -= start.Took
	return res
}
