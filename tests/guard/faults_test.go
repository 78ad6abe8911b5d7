package guard_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// faultsEnv names the file whose table is to be written anew: docs/faults.md, by
// 'make faults'.
const faultsEnv = "VMLOCKD_FAULTS"

// fault notes what is done to node 3, and that it was done just now.
func (r *run) fault(what string) {
	r.t.Helper()
	r.what, r.faultAt = what, time.Now()
	r.step("%s", what)
}

// logTime is when an event was logged.
var logTime = regexp.MustCompile(`(?m)^time=(\S+) .*event=(guard-stopped|guard-continued|guard-killed) `)

// row is the run in the table of docs/faults.md. It is made when nobody writes any more.
func (r *run) row() string {
	r.t.Helper()
	if r.what == "" {
		r.t.Error("nobody has said what the fault was")
	}
	words := map[string]string{"guard-stopped": "stopped", "guard-continued": "went on", "guard-killed": "killed"}
	var did []string
	b, err := r.Node(3).Log(r.ctx, lab.ServiceLock)
	r.must(err)
	for _, m := range logTime.FindAllSubmatch(b, -1) {
		at, err := time.Parse(time.RFC3339Nano, string(m[1]))
		r.must(err)
		word := words[string(m[2])]
		if word == "" || at.Before(r.faultAt.Add(-100*time.Millisecond)) {
			continue
		}
		delete(words, string(m[2]))
		did = append(did, fmt.Sprintf("%s after %.1f s", word, at.Sub(r.faultAt).Seconds()))
	}
	old, fresh := r.records(3), r.records(1)
	last, first := old[len(old)-1].Sub(r.faultAt).Seconds(), fresh[0].Sub(r.faultAt).Seconds()
	if len(did) == 0 {
		did = []string{"not stopped"}
	}
	overlap := "none"
	if first <= last {
		overlap = fmt.Sprintf("**%.1f s**", last-first)
	}
	return fmt.Sprintf("| %s | %s | %.1f s | %.1f s | %s |", r.what, strings.Join(did, ", "), max(last, 0), first, overlap)
}

// The lines around the table.
const (
	tableBegins = "<!-- the table: made by 'make faults', do not edit -->\n"
	tableEnds   = "<!-- end of the table -->\n"
)

// writeFaults puts the rows into the file that the environment names, if it does.
func writeFaults(t *testing.T, rows []string) {
	t.Helper()
	path := os.Getenv(faultsEnv)
	if path == "" {
		return
	}
	if t.Failed() {
		t.Errorf("%s is left as it was", path)
		return
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), tableBegins)
	_, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	head := "| fault | writer on node 3 | its last record | first record of node 1 | overlap |\n|---|---|---|---|---|\n"
	text := before + tableBegins + head + strings.Join(rows, "\n") + "\n" + tableEnds + after
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
