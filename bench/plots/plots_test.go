package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const document = "../../docs/performance.md"

// TestFigures looks whether the file of a run becomes figures of what is in it, and of nothing else.
func TestFigures(t *testing.T) {
	row := func(backend, measure, who string, median float64) result {
		return result{Backend: backend, Measure: measure, Who: who, Median: median, Min: median / 2, Max: 2 * median}
	}
	var r report
	r.Machine.Load = "1.25 2 3"
	r.Results = []result{
		row("local", "pairs/s, clients 1 kept", "virtlockd", 6000), row("local", "pairs/s, clients 1 kept", "vmlockd", 4000),
		row("local", "pairs/s, clients 64 new", "virtlockd", 7000),
		row("cluster", "a pair, new each time, 1 owners", "vmlockd", 500), row("cluster", "a pair, new each time, 10 owners", "vmlockd", 900),
		row("cluster", "a pair, new each time, 1 owners", "vmlockd / bare loop of package dlm, of each round", 3),
		row("local", "SIGKILL to serving, 0 locks", "vmlockd", 9), // there is no place for it
		row("cluster", "SIGKILL to serving, 10 locks", "nobody", 0),
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "bench.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	names, err := drawAll(file, filepath.Join(dir, "plots"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{filepath.Join(dir, "plots/pairs.svg"), filepath.Join(dir, "plots/curve-owners.svg")}; !slices.Equal(names, want) {
		t.Fatalf("%q, not %q", names, want)
	}
	for i, want := range [][]string{{"vmlockd", "virtlockd", "1 kept", "64 new", "load average 1.25 2 3"}, {"vmlockd", ">10<"}} {
		b, err := os.ReadFile(names[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range want {
			if !strings.Contains(string(b), text) {
				t.Errorf("%s does not say %q", names[i], text)
			}
		}
		if strings.Contains(string(b), "bare loop") {
			t.Errorf("%s has a ratio", names[i])
		}
	}
	f := figures[0]
	lines := f.lines(r.Results)
	if l := lines[1]; l.who != "virtlockd" || len(l.points) != 2 || l.points[1].X != 1 || l.points[1].Y != 7000 || l.spread[1].Low != 3500 || l.spread[1].High != 7000 {
		t.Errorf("%+v", l)
	}
}

func TestNothingToDraw(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.json")
	if err := os.WriteFile(file, []byte(`{"results": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := drawAll(file, t.TempDir()); err == nil {
		t.Error("a file without rows is no error")
	}
}

// TestDocument looks whether each figure finds rows in the tables of the document, which the bench has written, so that
// rows and figures keep the same names; and whether the document shows each.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var list []result
	for line := range strings.Lines(string(b)) {
		if cells := strings.Split(line, " | "); len(cells) > 4 {
			measure, who := strings.TrimPrefix(cells[0], "| "), cells[1]
			for _, backend := range []string{"local", "cluster"} { // the tables do not say which
				list = append(list, result{Backend: backend, Measure: measure, Who: who, Median: 1, Min: 1, Max: 1})
			}
		}
	}
	for _, f := range figures {
		if len(f.lines(list)) == 0 {
			t.Errorf("%s: no table of the document has a row of %s", f.file, f.measure)
		}
		if !strings.Contains(string(b), "](plots/"+f.file+")") {
			t.Errorf("the document does not show %s", f.file)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(document), "plots", f.file)); err != nil {
			t.Error(err)
		}
	}
}
