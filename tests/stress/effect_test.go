package stress

import (
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestEffect: a run in which one of the three things hardly happens fails.
func TestEffect(t *testing.T) {
	for _, tc := range []struct {
		exclusive, shared, busy int
		ok                      bool
	}{
		{20, 20, 20, true},
		{19, 500, 481, false}, {500, 19, 481, false}, {500, 481, 19, false}, {0, 0, 1000, false},
	} {
		h := newHistory()
		for n, op := range map[int]Op{0: {Kind: Acquire, Mode: locking.Exclusive}, 1: {Kind: Acquire, Mode: locking.Shared}, 2: {Kind: Acquire, Answer: Busy}} {
			for range []int{tc.exclusive, tc.shared, tc.busy}[n] {
				h.add(op)
			}
		}
		for range 1000 {
			h.add(Op{Kind: Release})
			h.add(Op{Kind: Acquire, Answer: Unknown})
		}
		if err := h.effect(1000); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}
