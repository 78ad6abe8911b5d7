package guard_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// Faults of the link of one host which its own kernel makes, see tc-netem(8) and
// tc-matchall(8).

// onLink runs a tc command for the last node's device in the cluster network, as $dev.
func (r *run) onLink(script string) {
	r.t.Helper()
	dev := fmt.Sprintf("dev=$(ip -o -4 address show to %s | awk '{print $2}') && ", r.loser().Addr())
	r.sh(r.last, dev+"modprobe -a sch_netem sch_ingress cls_matchall act_gact && "+script)
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
	r.goesOn(1, r.takeOver())
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

// proven is when the last proof was sent that the last node was in the ring, by its clock, as it has noted it.
func (r *run) proven() time.Duration {
	r.t.Helper()
	b, err := r.loser().ReadFile(r.ctx, "/run/vmlockd/guard.json")
	r.must(err)
	var noted struct{ Proven time.Duration }
	r.must(json.Unmarshal(b, &noted))
	return noted.Proven
}

// flapping is a link that goes and comes again and again, each time for less than
// corosync needs to drop a host.
func flapping(r *run) {
	r.contend()
	for i := range 4 {
		proven := r.proven()
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
		// A link that is there for less than two messages need proves nothing: on a fast machine four such turns are longer than a lease,
		// and the writer is stopped as it must be.
		r.await("node 3 to have proved that it is in the ring again", 15*time.Second, func() bool { return r.proven() > proven })
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
	r.goesOn(1, r.takeOver())
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

// allCut: nobody has quorum any more, and when the hosts meet again none of them may go on as if nothing had been.
func allCut(r *run) {
	r.contend()
	for _, n := range r.Nodes() {
		r.must(n.Cut(r.ctx))
	}
	r.fault("all hosts are cut off from all others, meet again when the writer was killed, and are rebooted")
	r.awaitLog("guard-stopped", detection)
	r.killed()
	r.idle()
	for _, n := range r.Nodes() {
		r.must(n.Heal(r.ctx))
	}
	r.step("the network is whole again")
	r.meet()
	r.idle()
	r.afterRebootOfAll()
}

// meet waits until nodes that were separated have met: corosync has a ring of all of them, or has been ended on one by dlm_controld of another.
func (r *run) meet() {
	r.t.Helper()
	r.await("the nodes to meet", 2*time.Minute, func() bool {
		met := true
		for _, n := range r.Nodes() {
			for _, name := range []string{lab.ServiceCorosync, lab.ServiceDLM} {
				st, err := n.Service(name).Status(r.ctx)
				r.must(err)
				if st.State != lab.ProcessRunning {
					r.step("%s of node %d is %s, status %d", name, n.ID(), st.State, st.Status)
					return true
				}
			}
			ring, err := n.Ring(r.ctx)
			r.must(err)
			met = met && len(ring) == r.nodes
		}
		return met
	})
}

// afterRebootOfAll reboots all nodes, and has node 1 ask for the lock then. All are there, so nobody is held off for.
func (r *run) afterRebootOfAll() {
	r.t.Helper()
	r.rebootAll()
	r.step("all nodes have booted")
	r.await("vmlockd of node 1 to serve", time.Minute, func() bool {
		res, err := r.Node(1).Shell(r.ctx, "test -S /run/libvirt/virtlockd-sock")
		r.must(err)
		return res.OK()
	})
	r.write(1)
	r.goesOn(1, detection)
}

// hostFrozenTooLong is what docs/guard.md does not cover: it stands still until another host has what it had, and
// goes on. Its guard stops it as soon as it gets the processor: within S of docs/guard.md, and some more on a busy machine.
func hostFrozenTooLong(r *run) {
	r.contend()
	r.frozenTooLong("node 3 as a whole stands still until node 1 writes, and goes on (**not covered** without a watchdog)", 3*time.Second)
	r.killed()
}

// frozenTooLong lets both write at once for less than limit; 0 for not at all.
func (r *run) frozenTooLong(what string, limit time.Duration) {
	r.t.Helper()
	r.limit = limit
	r.must(r.loser().Freeze(r.ctx))
	r.fault(what)
	r.goesOn(1, r.takeOver())
	r.must(r.loser().Thaw(r.ctx))
	r.step("node %d goes on", r.last)
}
