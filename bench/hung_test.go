package main

import (
	"testing"
	"time"
)

// TestHungWatch looks whether what hangs is told from what goes on, and from what is over.
func TestHungWatch(t *testing.T) {
	begins, next := []string{"dlm: bench: dlm_recover 3"}, []string{"dlm: bench: dlm_recover 3", "dlm: bench: dlm_recover_directory"}
	for _, tc := range []struct {
		what  string
		steps map[int][]string // what the second of two has said, from that second on
		want  int              // in which second it hangs; 0 if it does not
	}{
		{"nothing", map[int][]string{}, 0},
		{"one that hangs", map[int][]string{5: begins}, 35},
		{"one that goes on, and hangs", map[int][]string{5: begins, 30: next}, 60},
		{"one that ends", map[int][]string{5: begins, 30: nil}, 0},
		{"two of them", map[int][]string{5: begins, 30: nil, 31: begins, 50: nil}, 0},
	} {
		var w hungWatch
		var said []string
		got := 0
		for second := 1; second < 100 && got == 0; second++ {
			if lines, ok := tc.steps[second]; ok {
				said = lines
			}
			if w.look(time.Unix(int64(second), 0), [][]string{nil, said}) {
				got = second
			}
		}
		if got != tc.want {
			t.Errorf("%s: hangs at %d, not at %d", tc.what, got, tc.want)
		}
	}
}
