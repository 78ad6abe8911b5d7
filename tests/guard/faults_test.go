package guard_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// faultsEnv names the file whose table is to be written anew: docs/faults.md, by
// 'make faults'.
const faultsEnv = "VMLOCKD_FAULTS"

// fault notes what is done, and that it was done just now.
func (r *run) fault(what string) {
	r.t.Helper()
	r.what, r.faultAt = what, time.Now()
	r.step("%s", what)
}

// clockBehind is how much the clock of a node, by which it logs, may be behind that of this machine, which faults are noted by. It was
// a third of a second.
const clockBehind = time.Second

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
	b, err := r.loser().Log(r.ctx, lab.ServiceLock)
	if !errors.Is(err, lab.ErrNotFound) { // Pacemaker has started it, and it logs elsewhere
		r.must(err)
	}
	for _, m := range logTime.FindAllSubmatch(b, -1) {
		at, err := time.Parse(time.RFC3339Nano, string(m[1]))
		r.must(err)
		word := words[string(m[2])]
		if word == "" || at.Before(r.faultAt.Add(-clockBehind)) {
			continue
		}
		delete(words, string(m[2]))
		did = append(did, fmt.Sprintf("%s after %.1f s", word, max(at.Sub(r.faultAt), 0).Seconds()))
	}
	old, fresh := r.records(r.last), r.records(1)
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

// tableHead is that of each table.
const tableHead = "| fault | writer that had the lock | its last record | first record of node 1 | overlap |\n|---|---|---|---|---|\n"

// writeFaults puts the rows into the file that the environment names, if it does, in place of
// those of the same faults. A fault that was not played, or in which a test has failed, keeps its row.
func (s *suite) writeFaults(t *testing.T) {
	t.Helper()
	path := os.Getenv(faultsEnv)
	if path == "" {
		return
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begins, ends := fmt.Sprintf("<!-- table of %s: made by 'make faults', do not edit -->\n", s.table), fmt.Sprintf("<!-- end of table of %s -->\n", s.table)
	before, rest, ok := strings.Cut(string(b), begins)
	table, after, ok2 := strings.Cut(rest, ends)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table of %s", path, s.table)
	}
	text := before + begins + tableHead + strings.Join(merged(strings.TrimPrefix(table, tableHead), s.rows), "\n") + "\n" + ends + after
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// merged are the lines of a table with rows in the place of those of the same faults, and others at its end.
func merged(table string, rows []string) (list []string) {
	fault := func(row string) string {
		what, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
		return what
	}
	fresh := map[string]string{}
	for _, row := range rows {
		fresh[fault(row)] = row
	}
	for row := range strings.Lines(table) {
		row = strings.TrimSuffix(row, "\n")
		if row == "" {
			continue
		}
		if next, ok := fresh[fault(row)]; ok {
			delete(fresh, fault(row))
			row = next
		}
		list = append(list, row)
	}
	for _, row := range rows {
		if _, ok := fresh[fault(row)]; ok {
			delete(fresh, fault(row))
			list = append(list, row)
		}
	}
	return list
}

func TestRowsAreMerged(t *testing.T) {
	got := merged("| a | 1 |\n| b | 1 |\n", []string{"| c | 2 |", "| a | 2 |"})
	if want := []string{"| a | 2 |", "| b | 1 |", "| c | 2 |"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
