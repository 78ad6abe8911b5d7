package guard_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestTwoNodes is TestGuard with two nodes, as corosync has them: two_node, with wait_for_all. Each has
// quorum without the other one. So no time is enough, and only an operator ends the hold-off.
func TestTwoNodes(t *testing.T) {
	s := start(t, setup{
		nodes: 2, grace: 10 * time.Second, holdOff: 45 * time.Second, table: "two nodes",
		quorum: []string{"two_node: 1", "wait_for_all: 1"},
	})
	s.play(t, s.begin, []faultCase{
		{"CleanLeave", cleanLeave, theLoser},
		{"Cut", twoCut, theLoser},
		{"CutAndHealed", twoCutAndHealed, nobody},
		{"Deaf", twoDeaf, theLoser},
		{"CorosyncKilled", twoCorosyncKilled, theLoser},
		{"PowerCut", twoPowerCut, theLoser},
	})
	t.Run("OneBootsAlone", func(t *testing.T) { oneBootsAlone(s.prepare(t)) })
	s.writeFaults(t)
}

// forEver is what node 1 must be told of the other one of two.
var forEver = regexp.MustCompile(`node 2 \(node2\) has vanished without leaving, and may use its disks for ever, as quorum is no majority in this cluster: .*confirm-dead 2`)

func (r *run) awaitForEver() {
	r.t.Helper()
	r.await("node 1 to be told that no time is enough", detection, func() bool { return forEver.MatchString(r.said(1)) })
}

// confirm cuts the power of the last node, and says so on node 1.
func (r *run) confirm() {
	r.t.Helper()
	r.idle()
	r.must(r.loser().PowerCut(r.ctx))
	r.step("the power of node %d is cut", r.last)
	r.confirmOff()
}

// confirmOff says on node 1 that the last node is off, when node 1 has lost it.
func (r *run) confirmOff() {
	r.t.Helper()
	r.await("node 1 to see that", detection, func() bool {
		ring, err := r.Node(1).Ring(r.ctx)
		r.must(err)
		return len(ring) == len(r.others())
	})
	r.sh(1, fmt.Sprintf("vmlockctl confirm-dead --yes --reason 'the test has cut its power' node%d", r.last))
	r.step("confirmed")
	r.goesOn(1, detection)
}

// twoCut: both go on, and neither takes what the other one has.
func twoCut(r *run) {
	r.contend()
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 2 is cut off; its power is cut, and an operator says so, once node 1 is held off")
	r.awaitForEver()
	r.goesOn(2, 10*time.Second)
	r.confirm()
}

// twoCutAndHealed: each has dropped the other one, and they meet again.
func twoCutAndHealed(r *run) {
	r.contend()
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 2 is cut off, and is back when node 1 is held off; then both are rebooted")
	r.awaitForEver()
	r.must(r.loser().Heal(r.ctx))
	r.step("node 2 is back")
	r.meet()
	r.idle()
	r.afterRebootOfAll()
}

func twoDeaf(r *run) {
	r.contend()
	r.onLink(dropIncoming)
	r.fault("node 2 hears nobody, and is heard; its power is cut, and an operator says so, when it was stopped or node 1 is held off")
	r.await("one of both to notice", detection, func() bool { return r.logs("guard-stopped") || forEver.MatchString(r.said(1)) })
	r.confirm()
}

// twoCorosyncKilled: it has no cluster any more, which its guard knows. The other one cannot know that.
func twoCorosyncKilled(r *run) {
	r.contend()
	r.must(r.loser().Service(lab.ServiceCorosync).Kill(r.ctx))
	r.fault("corosync of node 2 is killed; its power is cut, and an operator says so, when the writer was killed")
	r.awaitLog("guard-stopped", detection)
	r.killed()
	r.awaitForEver()
	r.confirm()
}

// twoPowerCut: the hold-off does not end by itself.
func twoPowerCut(r *run) {
	r.contend()
	r.must(r.loser().PowerCut(r.ctx))
	r.fault("the power of node 2 is cut, and an operator says so after 55 s")
	r.awaitForEver()
	over := time.NewTimer(r.holdOff + 10*time.Second)
	defer over.Stop()
	select {
	case <-over.C:
	case <-r.ctx.Done():
	}
	before := strings.Count(r.said(1), "for ever")
	r.await("node 1 to be refused still", 15*time.Second, func() bool { return strings.Count(r.said(1), "for ever") > before })
	r.confirm()
}

// oneBootsAlone: wait_for_all keeps a node that boots alone from having quorum, and so from granting anything.
func oneBootsAlone(r *run) {
	for _, n := range r.Nodes() {
		r.must(n.PowerCut(r.ctx))
	}
	r.step("both are off")
	r.must(r.Node(1).Boot(r.ctx))
	r.must(r.Node(1).WaitInquorate(r.ctx))
	r.await("node 1 to be refused for want of quorum", 2*time.Minute, func() bool {
		// It ends at once while vmlockd does not serve yet.
		if st, err := r.writer(1).Status(r.ctx); err != nil || st.State == lab.ProcessExited {
			r.write(1)
		}
		return strings.Contains(r.said(1), "quorum")
	})
	r.idle()
	r.must(r.Node(2).Boot(r.ctx))
	r.step("node 2 boots")
	r.goesOn(1, 2*time.Minute)
	r.must(r.writer(1).Stop(r.ctx))
}
