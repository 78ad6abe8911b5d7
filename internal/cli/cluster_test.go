package cli_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/control"
)

// TestClusterOutput compares what is shown of a cluster with golden files: a
// daemon of three nodes, one of which is lost and one does not answer.
func TestClusterOutput(t *testing.T) {
	at := time.Date(2026, time.November, 25, 6, 2, 35, 0, time.UTC)
	lost := at.Add(time.Minute)
	held := func(id uint32, node, vm, mode, path string) control.Holder {
		return control.Holder{NodeID: id, Node: node, VM: vm, UUID: "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", PID: 700 + int32(id), Mode: mode, Resource: path, Since: at}
	}
	all := control.Holders{
		Scope: control.ScopeCluster,
		Holders: []control.Holder{
			held(1, "kvm1", "web", "exclusive", "/srv/vm/web.img"),
			held(1, "kvm1", "db1", "shared", "/srv/vm/common.img"),
			held(2, "", "db2", "shared", "/srv/vm/common.img"), // its name is not known
		},
		Missing: []control.Missing{{NodeID: 3, Node: "kvm3", Error: "no answer in time"}},
	}
	one := control.Holders{Scope: control.ScopeCluster, Holders: all.Holders[1:], Missing: []control.Missing{}}
	none := control.Holders{Scope: control.ScopeCluster, Holders: []control.Holder{}, Missing: []control.Missing{{Error: "this daemon has just been started"}}}
	status := control.Status{
		Version: "1.2.3", PID: 739, Started: at, Backend: "cluster", Socket: "/run/libvirt/virtlockd-sock", NodeID: 1, Node: "kvm1",
		Draining: &control.Drained{Since: at, By: "alice", Reason: "new kernel"},
		Counts:   control.Counts{Locks: 2, Exclusive: 1, Shared: 1, Resources: 2, Owners: 2, Waiting: 1},
		Events:   map[string]uint64{"granted": 7, "refused": 3, "released": 4, "released_owner_gone": 1, "forced": 0},
		Cluster: &control.Cluster{
			Name: "prod", NodeID: 1, Quorate: control.Yes, Fencing: control.No, Guarded: true,
			Guard: &control.GuardState{
				Mode: "freeze", Promise: true, Lost: "corosync has delivered nothing for 19s", Grace: 10, HoldOff: 60, Least: 42.5, Watchdog: "closed",
				Stopped:  []control.StoppedVM{{VM: "web", UUID: "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", PID: 701, Left: 7.5}},
				Vanished: []control.VanishedNode{{NodeID: 4, Left: 41, Seen: true}},
			},
			Lockspace: control.DLMLockspace{Name: "vmlockd", State: control.LockspaceStopped, WaitsFor: "fencing of node 4", Since: &lost},
		},
		Members: []control.Member{
			{NodeID: 1, Name: "kvm1", Self: true, Member: control.Yes, Version: "1.2.3"},
			{NodeID: 2, Name: "kvm2", Member: control.Yes},
			{NodeID: 3, Name: "kvm3", Member: control.Yes, Version: "1.2.2", Silent: true},
			{NodeID: 4, Name: "kvm4", Member: control.No, NeedsFencing: true, Lost: &lost},
		},
		Warnings: []control.Warning{{Code: control.WarnNoDaemon, Message: "no vmlockd runs on these members of the cluster: kvm2 (2)"}},
	}
	socket := serveControl(t, func(w http.ResponseWriter, r *http.Request) {
		var answer any
		switch path := r.URL.Path + "?" + r.URL.Query().Get("path"); path {
		case "/v1/status?":
			answer = status
		case "/v1/holders?":
			if answer = all; r.URL.Query().Get("vm") == "nobody" {
				answer = none
			}
			if r.URL.Query().Get("cluster") != "true" {
				t.Errorf("asked for %s", r.URL)
			}
		case "/v1/who?/srv/vm/common.img":
			answer = one
		case "/v1/who?/srv/vm/free.img":
			answer = none
		default:
			t.Errorf("asked for %s", r.URL)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	for _, tc := range []struct {
		name   string
		status int
		args   []string
	}{
		{"cluster-status", 0, []string{"status"}},
		{"cluster-ls", 5, []string{"ls", "--cluster"}},
		{"cluster-ls-nothing", 5, []string{"ls", "--cluster", "--vm", "nobody"}},
		{"cluster-who", 0, []string{"who", "/srv/vm/common.img"}},
		{"cluster-who-nobody", 5, []string{"who", "/srv/vm/free.img"}},
	} {
		for suffix, more := range map[string][]string{".txt": nil, ".json": {"--json"}} {
			status, out, errs := ctl(socket, append(tc.args, more...)...)
			if status != tc.status {
				t.Errorf("%s%s: status %d, want %d", tc.name, suffix, status, tc.status)
			}
			if more != nil && errs != "" {
				t.Errorf("%s%s: stderr %q", tc.name, suffix, errs)
			}
			golden(t, tc.name+suffix, out+errs)
		}
	}
}

// golden compares what was printed with a file of testdata/golden, or writes that.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata/golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is not as wanted; 'go test ./internal/cli -update' writes it anew: %s", path, diff)
	}
}
