package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/doctor"
)

var updateDoctor = flag.Bool("update-doctor", false, "write the golden files of doctor")

// golden compares a text with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "doctor", name+".golden")
	if *updateDoctor {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", file, diff)
	}
}

func TestDoctorReport(t *testing.T) {
	find := func(id string, s doctor.Severity, where, what string) doctor.Finding {
		return doctor.Finding{ID: id, Severity: s, Where: where, What: what, Remedy: "do <this> & that"}
	}
	fault := find("lock-manager", doctor.Fault, "/etc/libvirt/qemu.conf", "lock_manager is not set")
	warning := find("unstable-path", doctor.Warning, "virtual machine a\x1b[31m, disk vda", "/dev/sdb may be another disk")
	unchecked := find("unchecked", doctor.Unchecked, "/run/libvirt/qemu", "could not check virtual machines: permission denied")
	for _, tc := range []struct {
		name   string
		list   []doctor.Finding
		status int
	}{
		{"healthy", []doctor.Finding{}, exitOK},
		{"warning", []doctor.Finding{warning}, exitWarnings},
		{"unchecked", []doctor.Finding{unchecked}, exitWarnings},
		{"all", []doctor.Finding{fault, warning, unchecked}, exitFaults},
	} {
		for _, kind := range []string{"text", "json", "colour"} {
			var out bytes.Buffer
			a := &app{Streams: Streams{Out: &out, Err: &out}, json: kind == "json", colour: kind == "colour"}
			a.report(examinationOf(doctor.Report{Backend: "cluster", Findings: tc.list}))
			if a.status != tc.status {
				t.Errorf("%s: status %d, want %d", tc.name, a.status, tc.status)
			}
			golden(t, tc.name+"."+kind, out.String())
		}
	}
}

func TestDoctorList(t *testing.T) {
	for _, args := range [][]string{{"doctor", "--list"}, {"doctor", "--list", "--json"}} {
		var out, errs bytes.Buffer
		if status := Main(args, "test", Streams{Out: &out, Err: &errs}); status != 0 || errs.Len() > 0 {
			t.Errorf("%q: status %d, %s", args, status, &errs)
		}
		golden(t, map[int]string{2: "list.text", 3: "list.json"}[len(args)], out.String())
	}
}

// Whatever this machine is like: no daemon answers on a socket that does not exist,
// a mistake in the configuration is a finding, and the command line is checked.
func TestDoctorCommand(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("max_clients = 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := Main([]string{"doctor", "--json", "-f", bad, "--socket", filepath.Join(dir, "none")}, "test", Streams{Out: &out, Err: &errs}); status != exitFaults {
		t.Errorf("status %d: %s%s", status, &out, &errs)
	}
	var e examination
	if err := json.Unmarshal(out.Bytes(), &e); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, f := range e.Findings {
		ids[f.ID] = true
	}
	if !ids["config"] || e.Faults == 0 {
		t.Errorf("%+v", e)
	}
	if status := Main([]string{"doctor", "me"}, "test", Streams{Out: &out, Err: &errs}); status != exitUsage {
		t.Errorf("status %d", status)
	}
}

func TestDoctorAsks(t *testing.T) {
	since := time.Unix(1e9, 0)
	got := daemonOf(control.Status{
		Version: "1", PID: 7, Backend: "cluster", Socket: "/s", NodeID: 2, Draining: &control.Drained{Since: since, By: "b", Reason: "r"},
		Cluster:  &control.Cluster{Guarded: true, Lockspace: control.DLMLockspace{State: control.LockspaceStopped, WaitsFor: "w"}},
		Members:  []control.Member{{NodeID: 2, Self: true}, {NodeID: 3, Name: "c", Version: "v", Silent: true}},
		Warnings: []control.Warning{{Code: "x", Message: "y"}},
	}, control.Holders{Holders: []control.Holder{
		{NodeID: 2, Node: "b", VM: "web", PID: 9, Mode: "exclusive", Lockspace: "l", Resource: "/d"},
		{NodeID: 3, Node: "c", VM: "db", PID: 9, Mode: "shared", Resource: "/e"},
	}})
	want := doctor.Daemon{
		Version: "1", PID: 7, Backend: "cluster", Socket: "/s", NodeID: 2, Draining: &doctor.Draining{Since: since, By: "b", Reason: "r"},
		Guarded: true, Lockspace: "stopped", WaitsFor: "w",
		Peers: []doctor.Peer{{NodeID: 3, Name: "c", Version: "v", Silent: true}},
		Holders: []doctor.Holder{
			{Here: true, Node: "b", VM: "web", PID: 9, Lockspace: "l", Resource: "/d"},
			{Node: "c", VM: "db", PID: 9, Shared: true, Resource: "/e"},
		},
		Warnings: []doctor.DaemonWarning{{Code: "x", Message: "y"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// slowHost is a vmlockd that calls another host silent in its first answers.
type slowHost struct{ silent, statuses, asked int }

func (h *slowHost) Status(context.Context) (control.Status, error) {
	h.statuses++
	m := control.Member{NodeID: 3, Name: "c", Silent: h.statuses <= h.silent}
	return control.Status{NodeID: 2, Cluster: &control.Cluster{}, Members: []control.Member{{NodeID: 2, Self: true}, m}}, nil
}

func (h *slowHost) Holders(_ context.Context, q url.Values) (control.Holders, error) {
	if h.asked++; q.Get("cluster") != "true" {
		return control.Holders{}, errors.New("only this host was asked")
	}
	return control.Holders{}, nil
}

// A busy host that misses one question is not reported as silent: on a slow
// machine doctor did so now and then.
func TestDoctorAsksASlowHostAgain(t *testing.T) {
	for silent := range silenceQuestions + 2 {
		h := &slowHost{silent: silent}
		d, err := askDaemon(context.Background(), h)
		if err != nil {
			t.Fatal(err)
		}
		want := silent >= silenceQuestions
		if len(d.Peers) != 1 || d.Peers[0].Silent != want {
			t.Errorf("silent in %d answers: %+v", silent, d.Peers)
		}
		if most := min(silent+1, silenceQuestions); h.statuses != most || h.asked != most {
			t.Errorf("silent in %d answers: %d and %d questions", silent, h.statuses, h.asked)
		}
	}
}

func TestDoctorAsksForDisks(t *testing.T) {
	for d, want := range map[*control.Disk]doctor.Identity{
		{Path: "/p", Type: "ext4", Scope: control.ScopeHost, Name: "file 8:1 2", Resource: "r"}:      {Type: "ext4", Name: "file 8:1 2", Private: true},
		{Path: "/p", Type: "9p", Scope: control.ScopeCluster, Name: "/p", ByPath: true, Doubt: true}: {Type: "9p", Name: "/p", ByPath: true, Doubt: true},
		{Path: "/p", Error: "e"}: {Error: "e"},
	} {
		if diff := cmp.Diff(want, identityOf(*d)); diff != "" {
			t.Errorf("%+v: %s", d, diff)
		}
	}
}
