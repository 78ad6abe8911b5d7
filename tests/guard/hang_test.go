package guard_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
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

// skipIfKernelHangs ends this try, and reboots all nodes, when what was waited for did not come as the DLM hangs.
func (r *run) skipIfKernelHangs(why error) {
	r.t.Helper()
	if text := r.kernelHangs(); text != "" && !r.hangIsOurs {
		r.hung = true
		r.suite.hangs++
		r.rebootAll()
		r.t.Skipf("KERNEL HANG, and so: %v\n%s", why, text)
	}
}

// kernelHangs says, of the first node of which it is so, that its kernel has begun a recovery of the DLM and does not get to the
// end of it: both the kernel and vmlockd of that node must say so. It is empty if none does.
func (r *run) kernelHangs() string {
	r.t.Helper()
	for _, n := range r.Nodes() {
		if text := kernelHang(r.ctx, n); text != "" {
			return text
		}
	}
	return ""
}

func kernelHang(ctx context.Context, n *lab.Node) string {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	said, err := n.Recovery(ctx, "vmlockd")
	if err != nil || len(said) == 0 {
		return ""
	}
	res, err := n.Exec(ctx, "vmlockctl", "status")
	if err != nil || !strings.Contains(res.Stdout, hangs) { // without power there is no answer
		return ""
	}
	return fmt.Sprintf("kernel of %s:\n%s\nvmlockd there:\n%s", n.Name(), strings.Join(said, "\n"), res.Stdout)
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
