package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// scripted is a locker whose turns take what is said, one after the other.
type scripted struct {
	name   string
	each   time.Duration
	asked  *[]string
	slower time.Duration // in the first turn of each kind
	turns  map[string]int
}

func (s *scripted) who() string { return s.name }

func (s *scripted) turn(_ context.Context, k lockKind, clients int, _ time.Duration) (turn, error) {
	*s.asked = append(*s.asked, fmt.Sprint(s.name, " ", k.what, " ", clients))
	each := s.each
	key := fmt.Sprint(k.what, clients)
	if s.turns[key]++; s.turns[key] == 1 {
		each = s.slower
	}
	return turn{count: 100, elapsed: 100 * each, processor: 50 * each}, nil
}

func (s *scripted) locksNothing() bool { return false }

// idle is one that locks nothing.
type idle struct{ *scripted }

func (idle) locksNothing() bool { return true }

// TestDLMPairs looks whether the rows have the figures of the turns that count, beside each other, and their goals.
func TestDLMPairs(t *testing.T) {
	var asked []string
	s := &series{backend: "cluster"}
	ours := &scripted{"ours", 3 * time.Millisecond, &asked, time.Hour, map[string]int{}}
	theirs := &scripted{"theirs", 2 * time.Millisecond, &asked, time.Hour, map[string]int{}}
	none := idle{&scripted{"none", time.Millisecond, &asked, time.Hour, map[string]int{}}}
	if err := dlmPairs(t.Context(), s, []locker{ours, theirs, none}, 2, time.Second); err != nil {
		t.Fatal(err)
	}
	rows := map[string]result{}
	for _, r := range s.results() {
		rows[r.Measure+"; "+r.Who] = r
	}
	for name, want := range map[string]result{
		"a pair, mastered here; ours":                                                {Median: 3000, Unit: "us"},
		"a pair, mastered here; ours / theirs, of each round":                        {Median: 1.5, Goal: "2 or less"},
		"a pair, mastered here, by the path of a file; ours / theirs, of each round": {Median: 1.5, Goal: "2 or less"},
		"a pair, mastered on the other node; theirs":                                 {Median: 2000, Unit: "us"},
		"a pair, mastered on the other node; ours / theirs, of each round":           {Median: 1.5, Goal: "1.3 or less"},
		"a refusal of what is held on the other node; ours / theirs, of each round":  {Median: 1.5, Goal: "1.3 or less"},
		"a pair, mastered here; none / theirs, of each round":                        {Median: 0.5},
		"a pair, mastered here; ours / none, of each round":                          {Median: 3},
		"pairs/s, mastered here, 64 clients; none / theirs, of each round":           {Median: 2},
		"pairs/s, mastered here, 64 clients; ours / none, of each round":             {Median: 1.0 / 3},
		"pairs/s, mastered here, 64 clients; theirs":                                 {Median: 500},
		"pairs/s, mastered here, 64 clients; ours / theirs, of each round":           {Median: 2.0 / 3, Goal: "0.8 or more"},
		"processor time for a pair, mastered here, 64 clients; ours":                 {Median: 1500, Unit: "us"},
	} {
		got, ok := rows[name]
		if !ok || len(got.Rounds) != 2 || fmt.Sprintf("%.3f", got.Median) != fmt.Sprintf("%.3f", want.Median) || got.Unit != want.Unit || got.Goal != want.Goal {
			t.Errorf("%s: %+v, and it should have two rounds of %+v", name, got, want)
		}
	}
	// By the path of a file is for the daemon only: the others lock what has a name meanwhile.
	if slices.Contains(asked, "theirs "+fileKind.what+" 1") || !slices.Contains(asked, "ours "+fileKind.what+" 1") {
		t.Errorf("asked: %q", asked)
	}
	// They take turns at being first.
	if want := []string{"ours mastered here 1", "theirs mastered here 1", "none mastered here 1",
		"theirs mastered here 1", "none mastered here 1", "ours mastered here 1"}; !slices.Equal(asked[:6], want) {
		t.Errorf("the first rounds are %q, not %q", asked[:6], want)
	}
}

func TestLoop(t *testing.T) {
	var done atomic.Int64
	var ended atomic.Int64
	got, err := loop(3, time.Nanosecond, func() time.Duration { return time.Duration(done.Load()) }, func(n int) (func() error, func(), error) {
		return func() error { done.Add(1); return nil }, func() { ended.Add(1) }, nil
	})
	if err != nil || got.count != int(done.Load()) || got.processor != time.Duration(done.Load()) || got.elapsed <= 0 || ended.Load() != 3 {
		t.Errorf("%+v, %v, for %d times, ended %d times", got, err, done.Load(), ended.Load())
	}
	broken := errors.New("broken")
	if _, err := loop(2, time.Hour, ownTime, func(int) (func() error, func(), error) {
		return func() error { return broken }, func() {}, nil
	}); !errors.Is(err, broken) {
		t.Errorf("an error ends as %v", err)
	}
}

// TestLibdlmMissing looks whether it is said what is missing, and what has it.
func TestLibdlmMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := buildLibdlm(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "libdlm-dev") {
		t.Errorf("without a compiler: %v", err)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("PATH"), "cc"), []byte("#!/bin/sh\necho 'libdlm.h: no such file' >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := buildLibdlm(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "libdlm-dev") || !strings.Contains(err.Error(), "libdlm.h: no such file") {
		t.Errorf("without the library: %v", err)
	}
}

func TestTurnOf(t *testing.T) {
	if got, err := turnOf("3 6000\n"); err != nil || got.each() != 2000 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, out := range []string{"", "3", "0 6000", "3 0", "three 6000"} {
		if got, err := turnOf(out); err == nil {
			t.Errorf("%q is read as %+v", out, got)
		}
	}
}

func TestTakeAll(t *testing.T) {
	*recoveryLocks = 25
	defer func() { *recoveryLocks = 10000 }()
	busy, fatal := errors.New("busy"), errors.New("fatal")
	var mu sync.Mutex
	asked := map[string]int{}
	taken := 0
	one := taker{func(_ context.Context, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if asked[name]++; asked[name] < 3 {
			return busy
		}
		taken++
		return nil
	}, func(err error) bool { return err == busy }}
	firsts := 0
	refusals, err := takeAll(t.Context(), []taker{one, one, one}, "bare7", true, func() { firsts++ })
	if err != nil || refusals != 50 || taken != 25 || len(asked) != 25 || firsts != 1 || asked["bench-bare7-00024"] != 3 {
		t.Errorf("%d refusals, %d of %d taken, %d were the first, %v", refusals, taken, len(asked), firsts, err)
	}
	one.take = func(context.Context, string) error { return fatal }
	if _, err := takeAll(t.Context(), []taker{one}, "bare8", true, func() {}); !errors.Is(err, fatal) {
		t.Errorf("an error that is no refusal ends as %v", err)
	}
	one.take = func(context.Context, string) error { return busy }
	if _, err := takeAll(t.Context(), []taker{one}, "bare9", false, func() {}); !errors.Is(err, busy) {
		t.Errorf("a refusal where there must be none ends as %v", err)
	}
}

func TestRatio(t *testing.T) {
	s := &series{}
	for round := range 2 {
		s.add("m", "a", "ms", float64(3+3*round))
		s.add("m", "b", "ms", 2)
		s.ratio("m", "a", "b", "1.1 or less")
	}
	if r := s.list[2]; !slices.Equal(r.Rounds, []float64{1.5, 3}) || r.Goal != "1.1 or less" || r.Who != "a / b, of each round" {
		t.Errorf("%+v", r)
	}
}

// TestRecovered has what a kernel 6.1 says.
func TestRecovered(t *testing.T) {
	const line = "dlm: bench: dlm_recover 5 generation 3 done: 290 ms"
	if m := recovered.FindStringSubmatch(line); len(m) != 3 || m[1] != "bench" || m[2] != "290" {
		t.Errorf("%q", m)
	}
}
