package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	if err := run(ctx, &options{backend: "local", only: "held,death,start", counts: "10", rounds: 1, window: time.Second, json: out}); err != nil {
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
		"start to the first answer, vmlockd",
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

func TestReadMetrics(t *testing.T) {
	for _, tc := range []struct {
		metrics string
		pending int
		heap    float64
		bad     bool
	}{
		{"# TYPE vmlockd_owner_records_pending gauge\ngo_memstats_heap_alloc_bytes 1.5e+06\nvmlockd_owner_records_pending 12\n", 12, 1.5e6, false},
		{"vmlockd_holder_up 1\n", 0, 0, false}, // the backend local
		{"go_goroutines 7\ngo_memstats_heap_alloc_bytes 8\n", 0, 0, true},
		{"vmlockd_owner_records_pending many\n", 0, 0, true},
	} {
		if n, heap, err := readMetrics(strings.NewReader(tc.metrics)); n != tc.pending || heap != tc.heap || (err != nil) != tc.bad {
			t.Errorf("%q: %d, %v, %v", tc.metrics, n, heap, err)
		}
	}
}

// TestCounters counts what a process does that is known: sleeping, it does nothing, and until it
// does it makes system calls and waits.
func TestCounters(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may count what other processes do")
	}
	cmd := exec.Command("/bin/sh", "-c", "read x; for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 $$; done; echo done; read y")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	c, err := countersOf(cmd.Process.Pid)
	for _, missing := range []error{unix.ENOSYS, unix.EPERM, unix.EACCES, unix.ENOENT, unix.ENODEV, unix.EOPNOTSUPP} {
		if errors.Is(err, missing) {
			t.Skipf("this kernel does not count for this process, and then the bench says so: %v", err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	before, err := c.usage()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	after, err := c.usage()
	if err != nil {
		t.Fatal(err)
	}
	// kill(2) ten times and write(2), at least; more if the shell was still starting.
	if u := after.since(before); u.calls < 11 || u.calls > 200 || u.switches < 1 || u.processor <= 0 {
		t.Errorf("%+v", u)
	}
}
