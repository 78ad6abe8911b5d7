package guard_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// Faults of the link of one host which its own kernel makes, see tc-netem(8) and
// tc-matchall(8).

// onLink runs a tc command for node 3's device in the cluster network, as $dev.
func (r *run) onLink(script string) {
	r.t.Helper()
	dev := fmt.Sprintf("dev=$(ip -o -4 address show to %s | awk '{print $2}') && ", r.Node(3).Addr())
	r.sh(3, dev+"modprobe -a sch_netem sch_ingress cls_matchall act_gact && "+script)
}

const (
	dropIncoming = "tc qdisc add dev $dev clsact && tc filter add dev $dev ingress matchall action drop"
	dropOutgoing = "tc qdisc add dev $dev root netem loss 100%"
	lossy        = "tc qdisc add dev $dev root netem loss 10% delay 5ms 5ms"
	wellAgain    = "tc qdisc del dev $dev root"
)

// deaf: it is heard, and hears nobody.
func deaf(r *run) {
	r.contend()
	r.onLink(dropIncoming)
	r.fault("node 3 hears nobody, and is heard")
	r.oneWay()
}

// mute: it hears the others, and nobody hears it.
func mute(r *run) {
	r.contend()
	r.onLink(dropOutgoing)
	r.fault("node 3 hears the others, and is not heard")
	r.oneWay()
}

// oneWay waits for the end of node 3's writer. A host that is heard and does not hear
// can keep corosync on the others from forming a ring for as long as it goes on. So
// its power is cut then, as by an operator, if node 1 does not write by then.
func (r *run) oneWay() {
	r.t.Helper()
	r.awaitLog("guard-stopped", detection)
	r.killed()
	r.must(r.Node(3).PowerCut(r.ctx))
	r.step("the power of node 3 is cut")
	r.goesOn(1, takeOver)
}

// lossyLink loses packets, delays them and changes their order; corosync copes, and
// nobody loses anything.
func lossyLink(r *run) {
	r.contend()
	r.onLink(lossy)
	r.fault("node 3's link loses a tenth of what it sends, and delays the rest by 0 to 10 ms")
	n := len(r.records(3))
	r.await("node 3 to write 300 records more", 2*time.Minute, func() bool { return len(r.records(3)) > n+300 })
	r.onLink(wellAgain)
	if r.logs("guard-killed") {
		r.t.Error("something was killed")
	}
	r.handOver()
}

// flapping is a link that goes and comes again and again, each time for less than
// corosync needs to drop a host.
func flapping(r *run) {
	r.contend()
	for i := range 4 {
		before := strings.Count(r.log(lab.ServiceCorosync), missed)
		r.must(r.Node(3).Cut(r.ctx))
		if i == 0 {
			r.fault("node 3's link goes and comes four times, each time before corosync drops a host")
		}
		r.await("corosync of node 3 to miss the others", detection, func() bool {
			return strings.Count(r.log(lab.ServiceCorosync), missed) > before
		})
		r.must(r.Node(3).Heal(r.ctx))
		for _, n := range r.Nodes() {
			r.await(n.Name()+" to be well", time.Minute, func() bool { return r.well(n.ID()) })
		}
	}
	r.goesOn(3, 15*time.Second)
	if r.logs("guard-killed") {
		r.t.Error("something was killed")
	}
	r.handOver()
}

// powerCut is a host that is off, and nobody says so.
func powerCut(r *run) {
	r.contend()
	r.must(r.Node(3).PowerCut(r.ctx))
	r.fault("the power of node 3 is cut, and nobody says so")
	r.awaitHoldOff()
	r.goesOn(1, takeOver)
}

// hostFrozen stands still as a whole, for less than the others need to drop it.
func hostFrozen(r *run) {
	r.contend()
	r.must(r.Node(3).Freeze(r.ctx))
	r.fault("node 3 as a whole stands still for 3 s")
	thaw := time.NewTimer(3 * time.Second) // less than corosync's token timeout of 5 s
	defer thaw.Stop()
	select {
	case <-thaw.C:
	case <-r.ctx.Done():
	}
	r.must(r.Node(3).Thaw(r.ctx))
	r.step("node 3 goes on")
	r.goesOn(3, 15*time.Second)
	for _, n := range r.Nodes() {
		r.await(n.Name()+" to be well", time.Minute, func() bool { return r.well(n.ID()) })
	}
	if r.logs("guard-killed") {
		r.t.Error("something was killed")
	}
	r.handOver()
}
