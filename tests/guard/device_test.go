package guard_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestQuorumDevice is TestTwoNodes with a third machine that is no member, and has a vote: corosync-qdevice on both, corosync-qnetd
// on the witness. What has quorum has a majority there, so the hold-off ends by itself.
func TestQuorumDevice(t *testing.T) {
	s := start(t, setup{nodes: 2, grace: 10 * time.Second, holdOff: 60 * time.Second, table: "a quorum device", witness: true})
	s.play(t, s.beginWithDevice, []faultCase{
		{"CleanLeave", cleanLeave, theLoser},
		{"PowerCut", devicePowerCut, theLoser},
		{"CutBetween", deviceCutBetween, theLoser},
		{"Cut", deviceCut, theLoser},
		{"DeviceLost", deviceLost, theLoser},
		{"DeviceHangs", deviceHangs, theLoser},
		{"VoteMoves", voteMoves, theLoser},
		{"VoteMovesAtOnce", voteMovesAtOnce, theLoser},
	})
	s.writeFaults(t)
}

// beginWithDevice has both nodes in touch with the device before a fault: it votes for nobody else.
func (s *suite) beginWithDevice(t *testing.T) *run {
	t.Helper()
	r := s.begin(t)
	for _, n := range s.Nodes() {
		r.awaitVote(n.ID(), true)
	}
	r.mark()
	return r
}

// awaitVote waits until corosync of a node counts the vote of the device, or does not any more.
func (r *run) awaitVote(node int, votes bool) {
	r.t.Helper()
	// "A,V,NMW" or "A,NV,NMW" or "NR" beside the node's own name.
	r.await(fmt.Sprintf("node %d to have the vote of the device: %v", node, votes), time.Minute, func() bool {
		res, err := r.Node(node).Exec(r.ctx, "corosync-quorumtool", "-s")
		r.must(err)
		for line := range strings.Lines(res.Stdout) {
			if strings.Contains(line, "(local)") {
				return strings.Contains(line, ",V,") == votes
			}
		}
		return false
	})
}

const aside = "aside"

// bystander is a writer on node 1 with a lock of its own, from before the fault. It must outlive what happens to the other node.
func (r *run) bystander() {
	r.t.Helper()
	_, err := r.Node(1).Start(r.ctx, r.id+"-"+aside, "writer", lab.SharedDir+"/"+r.id, aside, "/disk/"+r.id+"-"+aside)
	r.must(err)
	r.await("the bystander to write", time.Minute, func() bool { return len(r.recordsOf(aside)) > enough })
	r.t.Cleanup(func() { _ = r.Node(1).Service(r.id + "-" + aside).Stop(r.ctx) })
}

// bystanderGoesOn fails the test if the bystander was killed, and says how long it was stopped.
func (r *run) bystanderGoesOn() {
	r.t.Helper()
	before := len(r.recordsOf(aside))
	r.await("the bystander to write some more", 30*time.Second, func() bool { return len(r.recordsOf(aside)) > before+enough })
	list := r.recordsOf(aside)
	var longest time.Duration
	for i := range list[1:] {
		longest = max(longest, list[i+1].Sub(list[i]))
	}
	r.step("the bystander's longest pause was %v", longest.Round(time.Millisecond))
}

// holdsOff waits for the refusal that names node 2, and the seconds that are left; then for the take-over.
func (r *run) holdsOff() {
	r.t.Helper()
	r.await("node 1 to be held off, with name and seconds", detection, func() bool { return deviceRefusal(r.said(1)) })
	r.goesOn(1, r.takeOver())
}

// deviceRefusal reports whether node 1 was told of node 2, and for how long.
func deviceRefusal(said string) bool {
	return strings.Contains(said, "node 2 (node2) ") && strings.Contains(said, " seconds more") && !strings.Contains(said, "for ever")
}

// devicePowerCut: node 1 has quorum by the device's vote.
func devicePowerCut(r *run) {
	r.bystander()
	r.contend()
	r.must(r.loser().PowerCut(r.ctx))
	r.fault("the power of node 2 is cut, and nobody says so; node 1 has the device")
	r.holdsOff()
	r.bystanderGoesOn()
}

// cutBetween has both nodes drop what comes from the other one. Both reach the device.
func (r *run) cutBetween() {
	r.t.Helper()
	for _, n := range r.Nodes() {
		dev := fmt.Sprintf("dev=$(ip -o -4 address show to %s | awk '{print $2}') && ", n.Addr())
		r.sh(n.ID(), dev+"modprobe -a sch_ingress cls_u32 act_gact && tc qdisc add dev $dev clsact && tc filter add dev $dev ingress protocol ip u32 match ip src "+
			r.Node(3-n.ID()).Addr()+"/32 action drop")
	}
	r.t.Cleanup(func() { // before the others, which reboot node 2
		_, err := r.Node(1).Shell(r.ctx, "tc qdisc del dev $(ip -o -4 address show to "+r.Node(1).Addr()+" | awk '{print $2}') clsact")
		r.must(err)
	})
}

// deviceCutBetween: the device gives its vote to the node with the lower number, if there is nothing else to go by.
func deviceCutBetween(r *run) {
	r.bystander()
	r.contend()
	r.cutBetween()
	r.fault("nodes 1 and 2 do not hear each other, and both reach the device, which votes for node 1")
	r.awaitLog("guard-stopped", 2*detection)
	r.killed()
	r.holdsOff()
	r.bystanderGoesOn()
}

func deviceCut(r *run) {
	r.bystander()
	r.contend()
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 2 is cut off from node 1 and the device")
	r.awaitLog("guard-stopped", 2*detection)
	r.killed()
	r.holdsOff()
	r.bystanderGoesOn()
}

// deviceLost: two nodes are a majority without it. One is none.
func deviceLost(r *run) {
	r.contend()
	r.must(r.Witness().Service(lab.ServiceQNetd).Kill(r.ctx))
	r.step("corosync-qnetd is killed")
	for _, n := range r.Nodes() {
		r.awaitVote(n.ID(), false)
	}
	r.bystander() // so locks are granted
	for _, n := range r.Nodes() {
		r.await(n.Name()+" to be well", 10*time.Second, func() bool { return r.well(n.ID()) })
	}
	r.goesOn(2, 10*time.Second)
	r.idle()
	if r.logs("guard-stopped") {
		r.t.Error("the writer was stopped, and both nodes are there")
	}
	r.must(r.loser().PowerCut(r.ctx))
	r.fault("corosync-qnetd is killed; then the power of node 2 is cut; corosync-qnetd is back when the other writer of node 1 was killed")
	r.bystanderKilled()
	r.await("node 1 to be refused for want of quorum", detection, func() bool { return strings.Contains(r.said(1), "quorum") })
	// What is found here has doctor end with status 7 (a fault); and it is to name the device.
	said := r.sh(1, "vmlockctl status; vmlockctl doctor || [ $? = 7 ]")
	if !strings.Contains(said, "quorum device") {
		r.t.Errorf("nothing says that the quorum device may be what is missing:\n%s", said)
	}
	r.idle()
	r.must(r.Witness().Service(lab.ServiceQNetd).Start(r.ctx))
	r.step("corosync-qnetd is started")
	r.awaitVote(1, true)
	r.holdsOff()
}

// deviceHangs: corosync waits for the device when the ring changes, and tells of the quorum that it had before. That counts for nothing: what is on
// node 1 is stopped when the lease is over, at the latest.
func deviceHangs(r *run) {
	r.bystander()
	r.contend()
	qnetd := r.Witness().Service(lab.ServiceQNetd)
	r.must(qnetd.SignalGroup(r.ctx, syscall.SIGSTOP))
	r.must(r.loser().PowerCut(r.ctx))
	r.fault("corosync-qnetd stands still (SIGSTOP), and the power of node 2 is cut; corosync-qnetd goes on when the other writer of node 1 was killed")
	r.bystanderKilled()
	r.idle()
	r.must(qnetd.SignalGroup(r.ctx, syscall.SIGCONT))
	r.step("corosync-qnetd goes on")
	r.awaitVote(1, true)
	r.holdsOff()
}

// bystanderKilled waits until the guard of node 1 has killed the bystander.
func (r *run) bystanderKilled() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 2*detection)
	defer cancel()
	st, err := r.Node(1).Service(r.id + "-" + aside).Wait(ctx)
	r.must(err)
	if st.Status != statusKilled {
		r.t.Errorf("the bystander has ended with status %d, and not by SIGKILL", st.Status)
	}
	list := r.recordsOf(aside)
	r.step("the bystander was killed; its last record is %.1f s after the fault", list[len(list)-1].Sub(r.faultAt).Seconds())
}

// voteMoves: node 2, alone with the vote of the device, loses it to node 1 and cannot be told.
func voteMoves(r *run) {
	r.must(r.Node(1).PowerCut(r.ctx))
	r.step("the power of node 1 is cut")
	r.must(r.loser().WaitMembers(r.ctx, 2))
	r.goesOn(2, detection)
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 2 is alone and has the vote of the device; it is cut off while node 1 boots, which gets the vote")
	r.must(r.Node(1).Boot(r.ctx))
	r.awaitVote(1, true)
	r.awaitLog("guard-stopped", detection)
	r.await("vmlockd of node 1 to serve", time.Minute, func() bool {
		res, err := r.Node(1).Shell(r.ctx, "test -S /run/libvirt/virtlockd-sock")
		r.must(err)
		return res.OK()
	})
	r.contend()
	r.killed()
	r.holdsOff()
}

// voteMovesAtOnce: corosync of node 2 counts the vote for a while when nobody says any more that it has it.
func voteMovesAtOnce(r *run) {
	r.contend()
	r.must(r.Node(1).Service(lab.ServiceQDevice).Stop(r.ctx))
	r.cutBetween()
	r.must(r.loser().WaitMembers(r.ctx, 2))
	r.step("node 2 is alone and has the vote")
	r.must(r.Node(1).Service(lab.ServiceQDevice).Start(r.ctx))
	r.await("node 1 to be known to the device", time.Minute, func() bool {
		res, err := r.Node(1).Exec(r.ctx, "corosync-qdevice-tool", "-s")
		r.must(err)
		return strings.Contains(res.Stdout, "Connected")
	})
	r.goesOn(2, 10*time.Second)
	r.idle()
	r.mark()
	r.must(r.loser().Service(lab.ServiceQDevice).Kill(r.ctx))
	r.fault("node 2 is separated from node 1 and has the vote of the device; its corosync-qdevice is killed, and the device votes for node 1 at once")
	r.awaitVote(1, true)
	r.awaitLog("guard-stopped", detection)
	r.killed()
	r.holdsOff()
}
