package deadline_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/metrics"
)

// These need no lab: what the lab test looks for in answers is what a daemon without
// quorum shows, and nothing that it shows otherwise.

func TestMetricsWithoutQuorum(t *testing.T) {
	for _, c := range []struct {
		name    string
		cluster metrics.Cluster
		told    bool
		wrong   string
	}{
		{"told", metrics.Cluster{Joined: true, Cause: "quorum", Heard: true}, true, ""},
		{"silent", metrics.Cluster{Joined: true, Cause: "quorum"}, false, ""},
		{"quorate", metrics.Cluster{Joined: true, Cause: "quorum", Heard: true, Quorate: true}, false, "vmlockd_cluster_quorate is 1"},
		{"fencing", metrics.Cluster{Joined: true, Cause: "fencing", Heard: true}, false, "vmlockd_lockspace_stopped{cause=quorum} is 0"},
		{"running", metrics.Cluster{Joined: true, Cause: "quorum", Running: true, Heard: true}, false, "vmlockd_lockspace_running is 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := metrics.New(metrics.Options{Version: "v1", Backend: "cluster", Ports: metrics.Ports{
				Locks:   func() locking.Counts { return locking.Counts{Exclusive: 1} },
				Cluster: func() metrics.Cluster { return c.cluster },
			}})
			w := httptest.NewRecorder()
			m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			told, err := metricsWithoutQuorum(w.Body.Bytes())
			switch {
			case c.wrong == "" && err != nil:
				t.Error(err)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("error %v, want %q", err, c.wrong)
			case c.wrong == "" && told != c.told:
				t.Errorf("told: %v", told)
			}
		})
	}
	for _, text := range []string{"vmlockd_lockspace_running", "# TYPE a gauge\na 1\na 1 x\n", "<html>"} {
		if _, err := parseMetrics([]byte(text)); err == nil {
			t.Errorf("%q was taken for metrics", text)
		}
	}
}

func TestStatusWithoutQuorum(t *testing.T) {
	const waits = "the cluster has no quorum: 2 of 3 nodes are missing: 2, 3 (see corosync-quorumtool -s)"
	for _, c := range []struct {
		name, quorate, state, waits string
		warnings                    []string
		told                        bool
		wrong                       string
	}{
		{"told", control.No, control.LockspaceStopped, waits, []string{control.WarnNoQuorum, control.WarnLockspace}, true, ""},
		{"silent", control.Unknown, control.LockspaceStopped, waits, []string{control.WarnNoAnswer, control.WarnLockspace}, false, ""},
		{"no warning", control.No, control.LockspaceStopped, waits, []string{control.WarnLockspace}, false, "warning no_quorum: false"},
		{"no other warning", control.No, control.LockspaceStopped, waits, []string{control.WarnNoQuorum}, false, "warning lockspace: false"},
		{"quorate", control.Yes, control.LockspaceStopped, waits, []string{control.WarnLockspace}, false, "says that there is quorum"},
		{"running", control.No, control.LockspaceRunning, "", []string{control.WarnNoQuorum}, false, "does not say that the lockspace waits"},
		{"other reason", control.No, control.LockspaceStopped, "the membership of the cluster is changing", nil, false, "does not say that the lockspace waits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := control.Status{Cluster: &control.Cluster{Quorate: c.quorate, Lockspace: control.DLMLockspace{State: c.state, WaitsFor: c.waits}}}
			for _, code := range c.warnings {
				st.Warnings = append(st.Warnings, control.Warning{Code: code})
			}
			body, err := json.Marshal(st)
			if err != nil {
				t.Fatal(err)
			}
			told, err := statusWithoutQuorum(body)
			switch {
			case c.wrong == "" && (err != nil || told != c.told):
				t.Errorf("told: %v, error %v", told, err)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("error %v, want %q", err, c.wrong)
			}
		})
	}
}

func TestHoldersHere(t *testing.T) {
	mine := control.Holder{NodeID: 1, VM: "holder", PID: 7, Mode: "exclusive", Resource: "mine"}
	other, elsewhere := mine, mine
	other.VM, elsewhere.NodeID = "asker", 2
	missing := []control.Missing{{NodeID: 2}, {NodeID: 3}}
	for _, c := range []struct {
		list        []control.Holder
		missing     []control.Missing
		ok, cluster bool
	}{
		{[]control.Holder{{Resource: "disk-3", VM: "asker"}, mine}, missing, true, true},
		{[]control.Holder{mine}, []control.Missing{{}}, true, true},
		{[]control.Holder{mine}, missing[:1], true, false},
		{[]control.Holder{mine}, nil, true, false},
		{nil, missing, false, false},
		{[]control.Holder{mine, mine}, missing, false, false},
		{[]control.Holder{other}, missing, false, false},
		{[]control.Holder{elsewhere}, missing, false, false},
	} {
		body, err := json.Marshal(control.Holders{Holders: c.list, Missing: c.missing})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := holdersHere(body); (err == nil) != c.ok {
			t.Errorf("%s: %v", body, err)
		}
		if _, err := holdersWithoutOthers(body); (err == nil) != c.cluster {
			t.Errorf("of the cluster: %s: %v", body, err)
		}
	}
}

func TestEither(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	pauses := func(fromTo ...int) (list []answer) {
		for i := 0; i < len(fromTo); i += 2 {
			list = append(list, answer{at(fromTo[i]), at(fromTo[i+1]).Sub(at(fromTo[i])), "paused"})
		}
		return list
	}
	got := either(append(pauses(10, 50, 100, 140), answer{at(0), 0, "running"}), pauses(0, 20, 40, 45, 60, 70, 140, 150))
	want := pauses(0, 50, 60, 70, 100, 150)
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
}
