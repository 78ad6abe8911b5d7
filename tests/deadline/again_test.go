package deadline_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// tries is how often a case is played before a dlm_controld that refuses a message in each of them is a failure.
const tries = 3

// try plays a case once more when dlm_controld refuses a message in it (docs/chaos.md): the lockspace stays stopped for ever
// then, which is none of vmlockd's doing, and the end of the case cannot be seen. It is said loudly.
func (s *suite) try(t *testing.T, name string, play func(*testing.T)) bool {
	t.Helper()
	defer func() { s.again = 0 }()
	for s.again = 0; s.again < tries; s.again++ {
		s.refused, s.playing = false, true
		passed := t.Run(name, play)
		if s.playing = false; !passed {
			return false
		}
		if !s.refused {
			return true
		}
		t.Logf("DLM_CONTROLD REFUSED A MESSAGE: in try %d of %s; all nodes are rebooted", s.again+1, name)
		s.rebootAll(t)
	}
	t.Errorf("%s: dlm_controld refused a message in each of %d tries", name, tries)
	return false
}

// refusalLasts is how long a dlm_controld has to say the same of a message that it has refused: for a moment one that is under way
// looks like it.
const refusalLasts = 10 * time.Second

// skipIfRefused ends a try when what was waited for did not come as a dlm_controld has refused a message: what "dlm_tool ls -n"
// says on the nodes has to show it (lab.Awaiting), all the time.
func (s *suite) skipIfRefused(t *testing.T, why error) {
	t.Helper()
	if !s.playing {
		return
	}
	var said map[int]string
	var refusing []int
	ctx, cancel := context.WithTimeout(s.ctx, refusalLasts)
	defer cancel()
	if lab.WaitFor(ctx, "no refused message", func(context.Context) (bool, error) {
		said = s.controlds()
		_, refusing = lab.Awaiting(said)
		return len(refusing) == 0, nil
	}) == nil || len(refusing) == 0 { // there was no time left to look
		return
	}
	// No pass: nothing of the case can be seen any more, and none of it counts. try plays it again, and fails after three of these.
	s.refused = true
	t.Skipf("%v: dlm_controld of nodes %v has refused a message, and waits for ever: %v", why, refusing, said)
}

// controlds is what dlm_controld says of the lockspace, by node; one that does not answer is left out.
func (s *suite) controlds() map[int]string {
	said := map[int]string{}
	for _, n := range s.Nodes() {
		ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
		if st, err := n.Status(ctx); err == nil && st.State == lab.NodeRunning {
			if res, err := n.Exec(ctx, "dlm_tool", "ls", "-n"); err == nil && res.OK() {
				said[n.ID()] = res.Stdout
			}
		}
		cancel()
	}
	return said
}

// rebootAll has all nodes off at the same time, which is the remedy, and waits until all serve again.
func (s *suite) rebootAll(t *testing.T) {
	t.Helper()
	var ids []int
	for _, n := range s.Nodes() {
		ids = append(ids, n.ID())
	}
	s.switchOff(t, ids...)
	for _, n := range s.Nodes() {
		s.do(t, "heal "+n.Name(), n.Heal)
	}
	before := s.logLengths(t)
	s.do(t, fmt.Sprintf("switch on nodes %v", ids), func(ctx context.Context) error {
		return s.atOnce(ids, func(n *lab.Node) error { return n.Boot(ctx) })
	})
	s.serve(t, before)
}
