package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == ownCommand { // an owner, which is this program again
		exit(own(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// TestPrints measures next to nothing, and looks whether all rows are there that are promised of the backend local.
func TestPrints(t *testing.T) {
	out := filepath.Join(t.TempDir(), "bench.json")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := run(ctx, &options{backend: "local", only: "held,death", counts: "10", rounds: 1, window: time.Second, json: out}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	rows := map[string]result{}
	for _, row := range r.Results {
		rows[row.Measure+", "+row.Who] = row
	}
	want := []string{
		"SIGKILL to serving, 0 locks, vmlockd",
		"SIGKILL to serving, 10 locks, vmlockd",
		"SIGKILL to serving, 10 locks, bare loop of open and fcntl",
		"longest wait of an open client, re-exec with 10 locks, vmlockd",
		"memory for a lock, 10 after they were taken, vmlockd",
		"memory for a lock, 10 after a restart, vmlockd",
		"owner's death to its lock granted to another, owner has a connection, vmlockd",
		"owner's death to its lock granted to another, owner has none, vmlockd",
	}
	if _, err := os.Stat(virtlockdPath); err == nil && os.Geteuid() == 0 {
		want = append(want, "longest wait of an open client, re-exec with 10 locks, virtlockd", "memory for a lock, 10 after they were taken, virtlockd")
	} else if len(r.Missing) == 0 {
		t.Error("virtlockd was not measured, and nobody is told so")
	}
	for _, name := range want {
		if row, ok := rows[name]; !ok || len(row.Rounds) == 0 {
			t.Errorf("no row %q", name)
		}
	}
	if m := rows["memory for a lock, 10 after they were taken, vmlockd"]; m.Goal != "1024" || strings.Contains(m.Note, "does not say") {
		t.Errorf("%+v", m)
	}
}

func TestPending(t *testing.T) {
	for _, tc := range []struct {
		metrics string
		want    int
		bad     bool
	}{
		{"# TYPE vmlockd_owner_records_pending gauge\nvmlockd_owner_records_pending 12\n", 12, false},
		{"vmlockd_holder_up 1\n", 0, false}, // the backend local
		{"go_goroutines 7\n", 0, true},
		{"vmlockd_owner_records_pending many\n", 0, true},
	} {
		if n, err := pending(strings.NewReader(tc.metrics)); n != tc.want || (err != nil) != tc.bad {
			t.Errorf("%q: %d, %v", tc.metrics, n, err)
		}
	}
}
