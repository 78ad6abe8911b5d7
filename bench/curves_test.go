package main

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

func TestGrowing(t *testing.T) {
	if list, err := growing("1,10,5000", 5000); err != nil || !slices.Equal(list, []int{1, 10, 5000}) {
		t.Errorf("%v, %v", list, err)
	}
	for _, text := range []string{"", "0", "1,1", "2,1", "1,5001", "1,,2", "x"} {
		if list, err := growing(text, 5000); err == nil {
			t.Errorf("%q is read as %v", text, list)
		}
	}
	*curvePoints[curveNodes] = "1,6"
	defer func() { *curvePoints[curveNodes] = "1,2,3,5" }()
	if _, err := points(curveNodes); err == nil || !strings.HasPrefix(err.Error(), "--curve-nodes 1,6: ") {
		t.Errorf("more nodes than a lab has (%d): %v", lab.MaxNodes, err)
	}
}

// TestBends looks whether a curve is judged by its first and last point, of the time for a pair and nothing else.
func TestBends(t *testing.T) {
	s := &series{backend: "cluster"}
	add := func(measure, who, curve string, x, value float64) {
		row := s.add(measure, who, "us", value)
		row.Curve, row.X = curve, x
	}
	for i, x := range []float64{100, 1000, 10000} {
		measure := curveMeasure(curveHeld, int(x))
		add(measure, whoDaemon, curveHeld, x, []float64{2000, 9000, 3000}[i])
		add(measure, whoBare, curveHeld, x, []float64{100, 400, 300}[i])
		add("processor time for "+measure, whoDaemon, curveHeld, x, 1e6/x)
		add("processor time for "+measure, whoBare, curveHeld, x, 1)
		add(measure, whoDaemon+" / "+whoBare+", of each round", curveHeld, x, []float64{20, 1, 10}[i])
	}
	add(curveMeasure(curveOwners, 1), whoDaemon, curveOwners, 1, 5) // one point is no curve
	got := map[string]float64{}
	for _, r := range bends(s.results()) {
		if r.Measure != "growth of the median: a pair, new each time, 10000 locks held instead of 100" {
			t.Errorf("%+v", r)
		}
		got[r.Who] = r.Median
	}
	if len(got) != 3 || got[whoDaemon] != 1.5 || got[whoBare] != 3 || got[whoDaemon+" / "+whoBare+", of each round"] != 0.5 {
		t.Errorf("%v", got)
	}
}

func TestInParallel(t *testing.T) {
	var did atomic.Int64
	broken := errors.New("broken")
	err := inParallel(func(worker int) error {
		did.Add(int64(worker))
		if worker == 3 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || did.Load() != fillers*(fillers-1)/2 {
		t.Errorf("%v, %d", err, did.Load())
	}
}

// TestSanlockMissing looks whether it is said what a file by NFS needs, and whether the block device needs none of it.
func TestSanlockMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	device, file := sanlockStores[0], sanlockStores[1]
	if err := device.needs(); err != nil {
		t.Error(err)
	}
	if err := file.needs(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "rpc.mountd") {
		t.Errorf("%v", err)
	}
	r := &report{}
	if err := sanlock(context.Background(), &options{}, &series{}, r, t.TempDir()); err != nil || len(r.Missing) != 1 {
		t.Errorf("%v, %q", err, r.Missing)
	}
}
