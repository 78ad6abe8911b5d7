package guard_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tries is how often a case is played before a kernel that hangs in each of them is a failure.
const tries = 3

// try plays a case once more when the kernel's DLM hangs in it (docs/faults.md): that is none of vmlockd's doing, and what
// the case is about cannot be seen then. It is said loudly, and three times in a row fail the test.
func (s *suite) try(t *testing.T, name string, play func(*testing.T)) {
	t.Run(name, func(t *testing.T) {
		for n := 1; n <= tries; n++ {
			before := s.hangs
			t.Run(strconv.Itoa(n), play)
			if s.hangs == before {
				return
			}
			t.Logf("KERNEL HANG: the DLM of the nodes' kernel hung in try %d of %s", n, name)
		}
		t.Errorf("the kernel's DLM hung in each of %d tries", tries)
	})
}

// hangs is what vmlockd says of a recovery that has not ended for 20 s (longRecovery in internal/backend/cluster).
const hangs = "the kernel of a host hangs in it"

// unfinished is what vmlockd says where dlm_controld, and no kernel, keeps a recovery from its end, after as long.
const unfinished = "dlm_controld here waits for messages"

// looks notes that what is waited for is to be seen on a node.
func (r *run) looks(node int) { r.looked[node] = true }

// skipIfKernelHangs ends this try, and reboots all nodes, when what was waited for did not come as the DLM hangs on a node on which it was
// looked for. What hangs elsewhere is no reason.
func (r *run) skipIfKernelHangs(why error) {
	r.t.Helper()
	if text := hangOf(r.recoveries(), r.looked); text != "" && !r.hangIsOurs {
		r.hung = true
		r.suite.hangs++
		r.rebootAll()
		r.t.Skipf("KERNEL HANG, and so: %v\n%s", why, text)
	}
}

// kernelHangs says, of the first node of which it is so, that its kernel hangs.
func (r *run) kernelHangs() string {
	r.t.Helper()
	all := map[int]bool{}
	for _, n := range r.Nodes() {
		all[n.ID()] = true
	}
	return hangOf(r.recoveries(), all)
}

// recovery is what is said on a node of the recovery of the DLM.
type recovery struct {
	node   int
	kernel []string // of one that it has begun and not ended
	status string   // vmlockctl's; empty if there is no answer
}

func (r *run) recoveries() (list []recovery) {
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	for _, n := range r.Nodes() {
		said, _ := n.Recovery(ctx, "vmlockd")
		res, _ := n.Exec(ctx, "vmlockctl", "status") // without power there is no answer
		list = append(list, recovery{n.ID(), said, res.Stdout})
	}
	return list
}

// hangOf says, of the first of some nodes of which it is so, that its kernel has begun a recovery of the DLM and does not get to the
// end of it: both the kernel and vmlockd of that node must say so. It is empty if none does, and where a node of the cluster knows another
// reason: its dlm_controld has not finished, and the kernels of others wait for that.
func hangOf(list []recovery, nodes map[int]bool) string {
	if slices.ContainsFunc(list, func(o recovery) bool { return strings.Contains(o.status, unfinished) }) {
		return ""
	}
	for _, o := range list {
		if nodes[o.node] && len(o.kernel) > 0 && strings.Contains(o.status, hangs) {
			return fmt.Sprintf("kernel of node %d:\n%s\nvmlockd there:\n%s", o.node, strings.Join(o.kernel, "\n"), o.status)
		}
	}
	return ""
}

func TestHangOf(t *testing.T) {
	hung := recovery{2, []string{"dlm: vmlockd: dlm_recover 5"}, "lockspace: recovers, for 21s now, and the kernel here waits for node 3: if that goes on, and vmlockctl status there knows no reason, " + hangs}
	well := recovery{1, nil, "lockspace: running"}
	for name, c := range map[string]struct {
		list []recovery
		of   int // what is waited for is to be seen there
		want bool
	}{
		"the node itself":                        {[]recovery{well, hung}, 2, true},
		"another one":                            {[]recovery{well, hung}, 1, false},
		"one that is waited for has a reason":    {[]recovery{well, hung, {3, nil, "lockspace: recovers: " + unfinished}}, 2, false},
		"one that is waited for has no power":    {[]recovery{well, hung, {3, nil, ""}}, 2, true},
		"the kernel alone, for less than 20 s":   {[]recovery{well, {2, hung.kernel, "lockspace: recovers"}}, 2, false},
		"vmlockd alone, as the recovery is over": {[]recovery{well, {2, nil, hung.status}}, 2, false},
	} {
		if got := hangOf(c.list, map[int]bool{c.of: true}); (got != "") != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// dlmPort is where the kernels' DLM talk to each other.
const dlmPort = 21064

// dlmCut: two kernels do not hear each other's DLM while they recover from the loss of the third node. For all else that is a
// recovery that hangs, and it must be known as one; and it ends well when they hear each other again.
func dlmCut(r *run) {
	r.contend()
	r.hangIsOurs = true
	const dev = "dev=$(ip -o -4 address show to 192.0.2.2 | awk '{print $2}') && "
	script := dev + "modprobe -a sch_ingress cls_u32 act_gact && tc qdisc add dev $dev clsact"
	for _, port := range []string{"sport", "dport"} {
		script += fmt.Sprintf(" && tc filter add dev $dev ingress protocol ip u32 match ip protocol 6 0xff match ip %s %d 0xffff action drop", port, dlmPort)
	}
	r.sh(2, script)
	r.must(r.loser().PowerCut(r.ctx))
	r.fault("the power of node 3 is cut, and nobody says so; the DLM of nodes 1 and 2 hear each other again when vmlockd calls that a recovery that hangs")
	r.await("vmlockd to call it a hang", 2*detection, func() bool { return r.kernelHangs() != "" })
	r.step("%s", r.kernelHangs())
	r.idle()
	r.sh(2, dev+"tc qdisc del dev $dev clsact")
	r.step("they hear each other again")
	r.goesOn(1, r.takeOver())
	if text := r.kernelHangs(); text != "" {
		r.t.Errorf("it is over, and called a hang:\n%s", text)
	}
}
