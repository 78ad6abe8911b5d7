package stress

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Three owners: a and b on node 0, c on node 1.
const a, b, c = 0, 1, 2

// ops makes a history in which each operation lasts 10 and begins where the one
// before ended, unless its times were set.
func ops(list ...Op) *History {
	h := newHistory()
	for _, node := range []int{0, 0, 1} {
		h.addOwner(node, int32(100+len(h.Owners)))
	}
	for i, o := range list {
		if o.Call == 0 && o.Return == 0 {
			o.Call, o.Return = at(i), at(i+1)-1
		}
		if o.Kind == Death {
			h.killed(o.Owner, o.Call)
		}
		h.add(o)
	}
	return h
}

func TestCheck(t *testing.T) {
	const ex, sh = locking.Exclusive, locking.Shared
	for _, test := range []struct {
		name string
		ok   bool
		h    *History
	}{
		{"one after the other", true, ops(acq(a, ex), rel(a), acq(c, ex), rel(c))},
		{"two exclusive owners", false, ops(acq(a, ex), acq(c, ex))},
		{"two exclusive owners on one node", false, ops(acq(a, ex), acq(b, ex))},
		{"twice exclusive by one owner", false, ops(acq(a, ex), acq(a, ex))},
		{"two exclusive owners, both calls at once", false, ops(during(acq(a, ex), 0, 10), during(acq(c, ex), 0, 10))},
		{"granted while the release is under way", true, ops(acq(a, ex), during(rel(a), 1, 5), during(acq(c, ex), 1, 5))},
		{"granted before the release began", false, ops(acq(a, ex), during(acq(c, ex), 1, 2), during(rel(a), 3, 4))},
		{"shared by all", true, ops(acq(a, sh), acq(b, sh), acq(c, sh), acq(a, sh), rel(a), rel(a), rel(b), rel(c), acq(c, ex))},
		{"exclusive beside shared", false, ops(acq(a, sh), acq(c, ex))},
		{"shared beside exclusive", false, ops(acq(a, ex), acq(c, sh))},
		{"exclusive though one of two shares is left", false, ops(acq(a, sh), acq(a, sh), rel(a), acq(c, ex))},

		{"busy with reason", true, ops(acq(a, ex), busy(c, sh), rel(a), acq(c, sh), busy(b, ex))},
		{"busy without reason", false, ops(busy(a, ex))},
		{"busy after the release", false, ops(acq(a, ex), rel(a), busy(c, ex))},
		{"busy while the release is under way", true, ops(acq(a, ex), during(rel(a), 1, 5), during(busy(c, ex), 2, 3))},
		{"sharing refused beside a share", false, ops(acq(a, sh), busy(c, sh))},

		{"release by a non-owner refused", true, ops(acq(a, ex), refused(b, NotOwner), refused(c, NotLocked), busy(c, ex), rel(a))},
		{"release by a non-owner honoured", false, ops(acq(a, ex), rel(b))},
		{"release by a non-owner honoured on another node", false, ops(acq(a, ex), rel(c))},
		{"release by a non-owner refused, and carried out", false, ops(acq(a, ex), refused(b, NotOwner), acq(c, ex))},
		{"not the owner, where nobody on the node is", false, ops(acq(a, ex), refused(c, NotOwner))},
		{"not locked, where somebody on the node has it", false, ops(acq(a, ex), refused(b, NotLocked))},
		{"not locked, while the node acquires", true, ops(during(acq(a, ex), 0, 5), during(busy(c, ex), 1, 2), during(refused(b, NotLocked), 3, 4))},
		{"not locked, while the owner itself acquires", true, ops(during(acq(a, ex), 0, 5), during(busy(c, ex), 1, 2), during(refused(a, NotLocked), 3, 4))},

		{"a lock lost", false, ops(acq(a, ex), refused(a, NotLocked))},
		{"a lock lost to another owner", false, ops(acq(a, ex), refused(a, NotOwner))},
		{"a lock kept beyond its release", false, ops(acq(a, ex), rel(a), rel(a))},
		{"a lock lost in between", false, ops(acq(a, ex), acq(c, sh), rel(c), rel(a))},

		{"an acquisition that happened", true, ops(unknown(acq(a, ex)), busy(c, ex), rel(a), acq(c, ex))},
		{"an acquisition that happened late", true, ops(unknown(acq(a, ex)), acq(c, ex), rel(c), busy(c, ex), rel(a), acq(c, ex))},
		{"an acquisition that happened, and was lost", false, ops(unknown(acq(a, ex)), busy(c, ex), acq(c, ex), rel(c))},
		{"an acquisition that timed out and was taken back", true, ops(timedOut(acq(a, ex)), busy(c, ex), acq(c, ex), rel(c))},
		{"an acquisition that was taken back, and came again", false, ops(timedOut(acq(a, ex)), busy(c, ex), acq(c, ex), rel(c), busy(c, ex))},
		{"an acquisition that never happened", true, ops(unknown(acq(a, ex)), acq(c, ex), rel(c))},
		{"an acquisition whose owner was gone", true, ops(during(gone(acq(a, ex)), 1, 5), during(busy(c, ex), 2, 3), during(acq(c, ex), 4, 6))},
		{"an acquisition whose owner was gone, not taken back", false, ops(gone(acq(a, ex)), busy(c, ex))},
		{"which of two happened shows later", true, ops(unknown(acq(a, ex)), unknown(acq(b, ex)), busy(c, ex), rel(b), acq(c, sh), rel(c), rel(a))},
		{"only one of two can have happened", false, ops(unknown(acq(a, ex)), unknown(acq(b, ex)), busy(c, sh), rel(b), rel(a), busy(c, sh))},
		{"a release that happened", true, ops(acq(a, ex), unknown(rel(a)), acq(c, ex))},
		{"a release that never happened", true, ops(acq(a, ex), unknown(rel(a)), busy(c, ex), rel(a))},
		{"one release, two ends", false, ops(acq(a, sh), acq(a, sh), unknown(rel(a)), acq(c, ex))},

		{"freed by death", true, ops(acq(a, ex), dies(a), acq(c, ex))},
		{"not freed by death", false, ops(acq(a, ex), dies(a), busy(c, ex))},
		{"freed before death", false, ops(acq(a, ex), during(acq(c, ex), 1, 2), during(dies(a), 3, 4))},
		{"freed by somebody else's death", false, ops(acq(a, ex), dies(b), acq(c, ex))},
		{"granted to the dead", false, ops(acq(a, ex), dies(a), acq(a, ex))},
		{"a death that nobody saw the end of", true, ops(acq(a, ex), open(dies(a)), busy(c, ex), acq(c, ex), rel(c))},
		{"refused to the dead", true, ops(acq(a, ex), dies(a), refused(a, NotLocked))},

		{"kept over a kill", true, killed(0, 1, ops(acq(a, ex), busy(c, ex), busy(c, ex), rel(a), acq(c, ex)))},
		{"lost in a kill", false, killed(0, 1, ops(acq(a, ex), busy(c, ex), acq(c, ex)))},
		{"lost in a kill, and refused to its owner", false, killed(0, 1, ops(acq(a, ex), busy(c, ex), refused(a, NotLocked)))},
		{"a share lost in a kill", false, killed(0, 1, ops(acq(a, sh), acq(c, sh), rel(c), acq(c, ex)))},
		{"one of two shares lost in a kill", false, killed(0, 2, ops(acq(a, sh), acq(a, sh), busy(c, ex), rel(a), refused(a, NotLocked)))},
		{"an acquisition cut off by a kill, and undone", true, killed(0, 0, ops(unknown(acq(a, ex)), acq(c, ex)))},
		{"an acquisition cut off by a kill, seen, and undone", true, killed(0, 0, ops(unknown(acq(a, ex)), during(busy(c, ex), -4, -3), acq(c, ex)))},
		{"an acquisition cut off by a kill, and kept", true, killed(0, 0, ops(unknown(acq(a, ex)), busy(c, ex), rel(a), acq(c, ex)))},
		{"an acquisition cut off by a kill, kept, and lost", false, killed(0, 0, ops(unknown(acq(a, ex)), busy(c, ex), acq(c, ex)))},
		{"an acquisition cut off by a kill, undone, and back again", false, killed(0, 0, ops(unknown(acq(a, ex)), acq(c, ex), rel(c), busy(c, ex)))},
		{"an acquisition cut off by a kill, and lost in the next", false,
			killed(0, 1, killed(0, 0, ops(unknown(acq(a, ex)), busy(c, ex), acq(c, ex))))},
		{"an acquisition cut off by a kill, found out by its owner", true, killed(0, 0, ops(unknown(acq(a, ex)), refused(a, NotLocked), acq(c, ex)))},
		{"an acquisition cut off by a kill, kept though its owner was told", false, killed(0, 0, ops(unknown(acq(a, ex)), refused(a, NotLocked), busy(c, ex)))},
		{"an acquisition that timed out, and was undone by the next daemon", true, killed(0, 1, ops(timedOut(acq(a, ex)), busy(c, ex), acq(c, ex)))},
		{"an acquisition that timed out, and came after the next daemon had settled all", false,
			killed(0, 1, ops(timedOut(acq(a, ex)), acq(c, ex), rel(c), busy(c, ex)))},
		{"an acquisition that timed out, and stayed", false, killed(0, 1, ops(timedOut(acq(a, ex)), busy(c, ex), busy(c, ex)))},
		{"a release that timed out, and was done much later", false, killed(0, 2, ops(acq(a, ex), timedOut(rel(a)), busy(c, ex), busy(c, ex), acq(c, ex)))},
		{"a kill on another node settles nothing", true, killed(1, 0, ops(unknown(acq(a, ex)), acq(c, ex), rel(c), busy(c, ex), rel(a)))},
		{"a release cut off by a kill, and done", true, killed(0, 1, ops(acq(a, ex), unknown(rel(a)), acq(c, ex)))},
		{"a release cut off by a kill, and not done", true, killed(0, 1, ops(acq(a, ex), unknown(rel(a)), busy(c, ex), rel(a), acq(c, ex)))},
		{"a release cut off by a kill, and done much later", false, killed(0, 1, ops(acq(a, ex), unknown(rel(a)), busy(c, ex), acq(c, ex)))},
		{"freed by a death during an outage", true, killed(0, 1, ops(acq(a, ex), dies(a), acq(c, ex)))},
		{"not freed by a death during an outage", false, killed(0, 1, ops(acq(a, ex), dies(a), busy(c, ex)))},
		{"an acquisition cut off by a kill, and never freed by death", false, killed(0, 0, ops(unknown(acq(a, ex)), busy(c, ex), dies(a), busy(c, ex)))},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			err := Check(test.h, dir)
			if test.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatal("not found out")
			}
			if _, err := os.Stat(filepath.Join(dir, "resource-0.html")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestViolationShowsFirstBadAnswer(t *testing.T) {
	h := ops(acq(a, locking.Exclusive), rel(a), acq(b, locking.Shared), acq(c, locking.Exclusive), rel(b), rel(c), acq(a, locking.Shared))
	err := Check(h, "")
	if err == nil {
		t.Fatal("not found out")
	}
	lines := strings.Split(err.Error(), "\n")
	if last := lines[len(lines)-1]; !strings.HasSuffix(last, "owner 2: acquire exclusive -> done") {
		t.Errorf("the last line is %q", last)
	}
	if !strings.Contains(lines[0], "it had last been shared, owner 1 on node 0") {
		t.Errorf("the first line is %q", lines[0])
	}
}

func TestResourcesAreApart(t *testing.T) {
	other := acq(c, locking.Exclusive)
	other.Resource = 1
	if err := Check(ops(acq(a, locking.Exclusive), other), ""); err != nil {
		t.Error(err)
	}
}
