package doctor

import (
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

// TestAsksOnlyWhoSurvivesIt: a dlm_controld that does not ignore SIGPIPE may die of a question for the members of a change. Of
// others it is asked twice for the change and for its members, as it may be so for a moment only.
func TestAsksOnlyWhoSurvivesIt(t *testing.T) {
	for mask, want := range map[string]int{"0000000000001000": 4, "ffffffffffffefff": 0, "no mask": 0} {
		w := clusterWorld(t)
		waits(w, mask, 0, controld.Started, controld.Started)
		w.examine(t)
		if w.inquired != want {
			t.Errorf("%s: %d questions, want %d", mask, w.inquired, want)
		}
	}
}

func TestIgnores(t *testing.T) {
	for text, want := range map[string]bool{
		"SigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001000\n": true,
		"SigIgn:\t0000000000000fff\nSigCgt:\tffffffffffffffff\n": false,
		"SigIgn:\tx\n": false, "": false,
	} {
		if got := ignores(text, syscall.SIGPIPE); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
