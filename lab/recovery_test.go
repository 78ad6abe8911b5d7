package lab

import (
	"slices"
	"strings"
	"testing"
)

// joined and lost are what a kernel 6.1 has said, in the lab.
const (
	joined = `
===== node 2: boot 1 at 2026-11-27T00:37:00Z =====
dlm: vmlockd: joining the lockspace group...
dlm: vmlockd: dlm_recover 1
dlm: vmlockd: add member 2
dlm: vmlockd: group event done 0
dlm: version 0x00030002 for node 1 detected
dlm: vmlockd: dlm_recover_members 2 nodes
dlm: vmlockd: dlm_recover_members_wait error -4
dlm: vmlockd: do_ls_recovery 1 interrupted and should be queued to run again
dlm: vmlockd: dlm_recover 3
dlm: vmlockd: add member 3
dlm: vmlockd: dlm_recover_members 3 nodes
dlm: vmlockd: dlm_recover_directory
dlm: vmlockd: dlm_recover 3 generation 1 done: 240 ms
dlm: vmlockd: join complete
`
	lost = `dlm: closing connection to node 3
dlm: vmlockd: dlm_recover 5
dlm: vmlockd: dlm_clear_toss 1 done
dlm: vmlockd: remove member 3
dlm: vmlockd: dlm_recover_members 2 nodes
`
)

func TestRecovery(t *testing.T) {
	hangs := []string{"dlm: vmlockd: dlm_recover 5", "dlm: vmlockd: dlm_clear_toss 1 done", "dlm: vmlockd: remove member 3", "dlm: vmlockd: dlm_recover_members 2 nodes"}
	interrupted, _, _ := strings.Cut(joined, "dlm: vmlockd: dlm_recover 3")
	for name, tc := range map[string]struct {
		console string
		want    []string
	}{
		"nothing was said":                 {"", nil},
		"it is over":                       {joined, nil},
		"it hangs":                         {joined + lost, hangs},
		"with other words between":         {joined + lost + "dlm: connecting to 1\ndlm: other: dlm_recover 7\ndlm: other: dlm_recover 7 generation 1 done: 10 ms\n", hangs},
		"another one of another lockspace": {joined + strings.ReplaceAll(lost, "vmlockd", "other"), nil},
		"it is over after all":             {joined + lost + "dlm: vmlockd: dlm_recover 5 generation 2 done: 250 ms\n", nil},
		"it has failed":                    {joined + lost + "dlm: vmlockd: dlm_recover 5 error -22\n", nil},
		"dlm_controld has stopped it":      {interrupted, nil},
		"the node was rebooted":            {joined + lost + "\n===== node 2: boot 2 at 2026-11-27T00:40:00Z =====\n", nil},
		"and it hangs there":               {joined + lost + "\n===== node 2: boot 2 at 2026-11-27T00:40:00Z =====\n" + lost, hangs},
	} {
		if got := recovery(tc.console, "vmlockd"); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
