package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// result is one row: what was measured of whom, in several rounds.
type result struct {
	Backend string    `json:"backend"`
	Measure string    `json:"measure"`
	Who     string    `json:"who"`
	Unit    string    `json:"unit"`
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Rounds  []float64 `json:"rounds"`         // in the order in which they were run
	Goal    string    `json:"goal,omitempty"` // in words
	Note    string    `json:"note,omitempty"`
	// Of which curve it is a point, and where; "" and 0 if of none.
	Curve string  `json:"curve,omitempty"`
	X     float64 `json:"x,omitempty"`
}

// report is all that a run has to say.
type report struct {
	Machine machine   `json:"machine"`
	Begin   time.Time `json:"begin"`
	Took    string    `json:"took"`
	LoadEnd string    `json:"load_end"`
	Missing []string  `json:"missing"` // what could not be measured, and why
	Results []result  `json:"results"`
}

// series collects the rounds of rows that are measured in turns.
type series struct {
	backend string
	list    []*result
}

// add adds a round to a row, which is made by its first round.
func (s *series) add(measure, who, unit string, value float64) *result {
	i := slices.IndexFunc(s.list, func(r *result) bool { return r.Measure == measure && r.Who == who })
	if i < 0 {
		i = len(s.list)
		s.list = append(s.list, &result{Backend: s.backend, Measure: measure, Who: who, Unit: unit})
	}
	s.list[i].Rounds = append(s.list[i].Rounds, value)
	return s.list[i]
}

func (s *series) addTime(measure, who string, d time.Duration) *result {
	return s.add(measure, who, "ms", float64(d.Microseconds())/1000)
}

// results are the rows with their figures, those of one measure side by side.
func (s *series) results() []result {
	var measures []string
	for _, r := range s.list {
		if !slices.Contains(measures, r.Measure) {
			measures = append(measures, r.Measure)
		}
	}
	list := make([]result, 0, len(s.list))
	for _, r := range s.list {
		r.Median, r.Min, r.Max = median(r.Rounds), slices.Min(r.Rounds), slices.Max(r.Rounds)
		list = append(list, *r)
	}
	slices.SortStableFunc(list, func(a, b result) int {
		return cmp.Compare(slices.Index(measures, a.Measure), slices.Index(measures, b.Measure))
	})
	return list
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s; load average at the start %s, at the end %s; %s\n", r.Machine, r.Machine.Load, r.LoadEnd, r.Took)
	fmt.Fprintf(w, "Clients, daemons and lab nodes share these processors. A row is the median of its rounds, with the least and the greatest.\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BACKEND\tMEASURE\tWHO\tMEDIAN\tLEAST..GREATEST\tROUNDS\tGOAL")
	for _, x := range r.Results {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s %s\t%s..%s\t%d\t%s\n", x.Backend, x.Measure, x.Who,
			number(x.Median), x.Unit, number(x.Min), number(x.Max), len(x.Rounds), x.Goal)
	}
	t.Flush()
	notes := false
	for _, x := range r.Results {
		if x.Note != "" {
			if !notes {
				fmt.Fprintln(w)
			}
			notes = true
			fmt.Fprintf(w, "%s, %s, %s: %s\n", x.Backend, x.Measure, x.Who, x.Note)
		}
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "\nNOT MEASURED: %s\n", m)
	}
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
