// Plots draws the figures of docs/performance.md from what the bench has measured: SVG files, of which each says
// when that was and how busy the machine was.
//
// usage: plots BENCH.JSON DIRECTORY
//
// A figure of which the file has no rows is not drawn, and what the directory has of it stays. This is a module of its
// own, so that nothing else depends on the library for it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// report is what is read of the bench's JSON (bench/report.go).
type report struct {
	Machine struct {
		Processors int    `json:"processors"`
		Load       string `json:"load"`
	} `json:"machine"`
	Begin   time.Time `json:"begin"`
	LoadEnd string    `json:"load_end"`
	Results []result  `json:"results"`
}

type result struct {
	Backend string    `json:"backend"`
	Measure string    `json:"measure"`
	Who     string    `json:"who"`
	Unit    string    `json:"unit"`
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Rounds  []float64 `json:"rounds"`
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: plots BENCH.JSON DIRECTORY")
		os.Exit(2)
	}
	names, err := drawAll(os.Args[1], os.Args[2])
	for _, name := range names {
		fmt.Println(name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "plots:", err)
		os.Exit(1)
	}
}

// drawAll draws all figures for which there are rows, and returns the names of their files.
func drawAll(file, dir string) (names []string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for _, f := range figures {
		lines := f.lines(r.Results)
		if len(lines) == 0 {
			continue
		}
		name := filepath.Join(dir, f.file)
		if err := f.draw(lines, r.when(), name); err != nil {
			return names, fmt.Errorf("%s: %w", f.file, err)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, errors.New(file + " has no rows of any figure")
	}
	return names, nil
}

// when says when it was measured, and how busy the machine was.
func (r *report) when() string {
	return fmt.Sprintf("%s, %d processors; load average %s, at the end %s", r.Begin.Format("2006-01-02"), r.Machine.Processors, r.Machine.Load, r.LoadEnd)
}
