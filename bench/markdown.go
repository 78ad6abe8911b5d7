package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// markdown writes the tables of docs/performance.md: one for each backend, of the run that
// is in the report, and no words of who has read them.
func (r *report) markdown(path string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, %s; load average at the start %s, at the end %s; the run took %s.\n", r.Begin.Format("2006-01-02"), r.Machine, r.Machine.Load, r.LoadEnd, r.Took)
	backend := ""
	for _, x := range r.Results {
		if x.Backend != backend {
			backend = x.Backend
			fmt.Fprintf(&b, "\n### Backend %s\n\n| measure | who | median | least..greatest | rounds | goal |\n|---|---|---|---|---|---|\n", backend)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s..%s | %d | %s |\n", x.Measure, x.Who, strings.TrimSpace(number(x.Median)+" "+x.Unit), number(x.Min), number(x.Max), len(x.Rounds), x.Goal)
	}
	fmt.Fprintln(&b)
	for _, x := range r.Results {
		if x.Note != "" {
			fmt.Fprintf(&b, "* %s, %s, %s: %s\n", x.Backend, x.Measure, x.Who, x.Note)
		}
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "* Not measured: %s\n", m)
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
