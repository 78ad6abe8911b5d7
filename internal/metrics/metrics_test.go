package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everything has all ports.
func everything() Options {
	return Options{Version: "v1", Backend: "cluster", Ports: Ports{
		Locks: func() locking.Counts {
			return locking.Counts{Exclusive: 5, Shared: 2, Lost: 1, Owners: 3, Lockspaces: 4}
		},
		Cluster: func() Cluster {
			return Cluster{Joined: true, Cause: "quorum", Stopped: 1500 * time.Millisecond, Releasing: 6, Unsaid: 28, Heard: true, Members: 1, Missing: 2, Fencing: 1}
		},
		Kernel:      func() Kernel { return Kernel{InFlight: 7, Queued: 8, Oldest: 2 * time.Second, Unsettled: 9} },
		Holder:      func() Holder { return Holder{Up: true, Held: 10, Unkept: 11} },
		Journal:     func() Journal { return Journal{12, 13, 14, 15, 16, 17} },
		Connections: func() Connections { return Connections{18, 19, 20, 21} },
		Peers:       func() Peers { return Peers{22, 23} },
		Starts:      func() Starts { return Starts{24, 25, 26} },
		Log:         func() Log { return Log{27} },
	}}
}

// scrape reads the text format.
func scrape(t *testing.T, m *Metrics) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	values := map[string]string{}
	for l := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(l, "#") {
			name, value, _ := strings.Cut(strings.TrimSpace(l), " ")
			values[name] = value
		}
	}
	return values
}

func (m *Metrics) count(es ...locking.Event) {
	for _, e := range es {
		m.Observe(e)
	}
}

func TestEventsAreCounted(t *testing.T) {
	m := New(everything())
	before := scrape(t, m)
	took, broken := 300*time.Microsecond, errors.New("broken")
	refused := func(e *locking.Error) locking.Event {
		return locking.Event{Kind: locking.Refused, Err: e, Took: 2 * time.Second}
	}
	m.count(
		locking.Event{Kind: locking.Granted, Took: took},
		locking.Event{Kind: locking.Granted, Mode: locking.Shared, Took: took},
		locking.Event{Kind: locking.Granted, Mode: locking.Shared, Took: 20 * time.Microsecond},
		refused(&locking.Error{Kind: locking.KindBusy, Holders: []locking.Holder{{}}}),
		refused(&locking.Error{Kind: locking.KindBusy, Err: fmt.Errorf("%w (node 3)", locking.ErrBusy)}),
		refused(&locking.Error{Kind: locking.KindUnavailable, Err: context.DeadlineExceeded}),
		refused(&locking.Error{Kind: locking.KindUnavailable, Err: broken}),
		refused(&locking.Error{Kind: locking.KindInvalid}),
		refused(&locking.Error{Kind: locking.KindNoLockspace}),
		refused(&locking.Error{Kind: locking.KindOwnerGone}),
		refused(&locking.Error{Kind: locking.KindSystem}),
		locking.Event{Kind: locking.Refused, Err: broken},
		locking.Event{Kind: locking.Released, Took: took},
		locking.Event{Kind: locking.ReleasedGone, Took: took},
		locking.Event{Kind: locking.Forced, Took: took},
		locking.Event{Kind: locking.ReleasedUntold},
		locking.Event{Kind: locking.ReleaseFailed, Err: broken},
		locking.Event{Kind: locking.TakenBack},
		locking.Event{Kind: locking.Lost, Err: broken},
		locking.Event{Kind: locking.TakenAgain},
		locking.Event{Kind: locking.NotTakenAgain, Err: broken},
		locking.Event{Kind: locking.OwnerGone, Locks: 2},
		locking.Event{Kind: locking.OwnerEnding},
		locking.Event{Kind: locking.OwnerEndFailed, Err: broken},
		locking.Event{Kind: locking.OwnerUnverified},
		locking.Event{Kind: 255},
	)
	got := map[string]string{}
	for name, value := range scrape(t, m) {
		if before[name] != value && strings.HasPrefix(name, "vmlockd_") && !strings.Contains(name, "_bucket") {
			got[name] = value
		}
	}
	one := func(names ...string) map[string]string {
		want := map[string]string{}
		for _, n := range names {
			want["vmlockd_"+n] = "1"
		}
		return want
	}
	want := one(`lock_grants_total{mode="exclusive"}`,
		`lock_refusals_total{reason="busy_here"}`, `lock_refusals_total{reason="busy_elsewhere"}`, `lock_refusals_total{reason="unavailable_timeout"}`,
		`lock_refusals_total{reason="unavailable_other"}`, `lock_refusals_total{reason="invalid"}`, `lock_refusals_total{reason="no_lockspace"}`,
		`lock_refusals_total{reason="owner_gone"}`, `lock_refusals_total{reason="system"}`, `lock_refusals_total{reason="other"}`,
		`lock_releases_total{kind="owner"}`, `lock_releases_total{kind="owner_gone"}`, `lock_releases_total{kind="forced"}`, `lock_releases_total{kind="untold"}`,
		`lock_release_failures_total`, `locks_restored_total{result="taken_back"}`, `locks_restored_total{result="lost"}`,
		`forgotten_locks_total{result="taken_again"}`, `forgotten_locks_total{result="not_taken_again"}`,
		`owner_deaths_total`, `owner_endings_total`, `owner_ending_failures_total`, `owners_unverified_total`)
	want[`vmlockd_lock_grants_total{mode="shared"}`] = "2"
	want[`vmlockd_lock_acquire_duration_seconds_count{result="granted"}`] = "3"
	want[`vmlockd_lock_acquire_duration_seconds_sum{result="granted"}`] = "0.00062"
	want[`vmlockd_lock_acquire_duration_seconds_count{result="refused"}`] = "9"
	want[`vmlockd_lock_acquire_duration_seconds_sum{result="refused"}`] = "16"
	want[`vmlockd_lock_release_duration_seconds_count`] = "3"
	want[`vmlockd_lock_release_duration_seconds_sum`] = "0.0009"
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	after := scrape(t, m)
	for bucket, want := range map[string]string{"5e-05": "1", "0.0001": "1", "0.0005": "3", "10": "3", "+Inf": "3"} {
		if got := after[`vmlockd_lock_acquire_duration_seconds_bucket{result="granted",le="`+bucket+`"}`]; got != want {
			t.Errorf("%s grants within %s s, want %s", got, bucket, want)
		}
	}
}

func TestFiguresOfParts(t *testing.T) {
	got := scrape(t, New(everything()))
	for name, want := range map[string]string{
		`locks_held{mode="exclusive"}`: "5", `locks_held{mode="shared"}`: "2", `locks_lost`: "1", `owners`: "3", `lockspaces`: "4",
		`lockspace_joined`: "1", `lockspace_running`: "0", `lockspace_stopped_seconds`: "1.5", `releases_pending`: "6", `owner_records_pending`: "28", `lockspace_stopped{cause="quorum"}`: "1",
		`lockspace_stopped{cause="fencing"}`: "0", `cluster_quorate`: "0", `cluster_nodes{state="member"}`: "1", `cluster_nodes{state="missing"}`: "2", `cluster_nodes_to_fence`: "1",
		`kernel_calls_in_flight`: "7", `kernel_calls_queued`: "8", `kernel_oldest_call_seconds`: "2", `kernel_calls_unsettled`: "9",
		`holder_up`: "1", `holder_files`: "10", `holder_files_missing`: "11",
		`journal_entries`: "12", `journal_size_bytes`: "13", `journal_live_bytes`: "14", `journal_records_total`: "15", `journal_compactions_total`: "16", `journal_failures_total`: "17",
		`connections`: "18", `connections_limit`: "19", `connections_refused_total`: "20", `connections_failed_total`: "21",
		`peers`: "22", `peers_silent`: "23", `starts_total{how="fresh"}`: "24", `starts_total{how="crash"}`: "25", `starts_total{how="in_place"}`: "26",
		`log_dropped_total`:          "27",
		`scrape_stale{part="locks"}`: "0",
	} {
		if got["vmlockd_"+name] != want {
			t.Errorf("%s is %q, want %s", name, got["vmlockd_"+name], want)
		}
	}
	if _, ok := got["process_open_fds"]; !ok || got["go_goroutines"] == "" {
		t.Error("no figures of Go and of the process")
	}
	o := everything()
	o.Ports.Cluster = func() Cluster { return Cluster{} }
	o.Ports.Holder = nil
	for name := range scrape(t, New(o)) {
		if strings.HasPrefix(name, "vmlockd_cluster") || strings.HasPrefix(name, "vmlockd_holder") {
			t.Errorf("%s is shown, and nobody knows it", name)
		}
	}
}

func TestNamesAreGood(t *testing.T) {
	m := New(everything())
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for name, f := range families(t, m) {
		if !slices.ContainsFunc([]string{"vmlockd_", "go_", "process_"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			t.Errorf("%s begins with another name", name)
		}
		if len(f.help) < 10 {
			t.Errorf("%s: what is it? %q", name, f.help)
		}
	}
}

// TestDocumented: docs/metrics.md lists just the metrics that there are, and docs/events.md the causes.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]string{}, map[string]string{}
	for name, f := range families(t, New(everything())) {
		if strings.HasPrefix(name, "vmlockd_") {
			want[name] = f.kind + " " + strings.Join(f.labelNames(), ", ")
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(vmlockd_[a-z_]+)`(?: ([a-z, ]+))? \\| ([a-z]+) \\|").FindAllStringSubmatch(string(text), -1) {
		got[m[1]] = m[3] + " " + m[2]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("metrics (-) and docs/metrics.md (+) differ:\n%s", d)
	}
	if text, err = os.ReadFile("../../docs/events.md"); err != nil {
		t.Fatal(err)
	}
	_, text, _ = cutBytes(text, "\n## Causes\n")
	text, _, _ = cutBytes(text, "\n## ")
	var causes []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		if m[1] != "VMLOCKD_CAUSE" {
			causes = append(causes, m[1])
		}
	}
	if d := cmp.Diff(Causes, causes); d != "" {
		t.Errorf("Causes (-) and those of docs/events.md (+) differ:\n%s", d)
	}
}

// TestWhatIsShown: what operators are promised is there, of the kind that graphs of it need.
func TestWhatIsShown(t *testing.T) {
	all := families(t, New(everything()))
	for name, kind := range map[string]string{
		"vmlockd_lock_grants_total": "counter", "vmlockd_lock_refusals_total": "counter",
		"vmlockd_lock_acquire_duration_seconds": "histogram", "vmlockd_lock_release_duration_seconds": "histogram",
		"vmlockd_locks_held": "gauge", "vmlockd_peers": "gauge", "vmlockd_peers_silent": "gauge", "vmlockd_cluster_quorate": "gauge",
		"vmlockd_kernel_calls_in_flight": "gauge", "vmlockd_kernel_oldest_call_seconds": "gauge",
		"vmlockd_journal_entries": "gauge", "vmlockd_journal_size_bytes": "gauge", "vmlockd_journal_failures_total": "counter",
		"vmlockd_starts_total": "counter",
	} {
		if f := all[name]; f.kind != kind {
			t.Errorf("%s is a %q, want %s", name, f.kind, kind)
		}
	}
}

func cutBytes(b []byte, sep string) ([]byte, []byte, bool) {
	before, after, ok := strings.Cut(string(b), sep)
	return []byte(before), []byte(after), ok
}

// TestHangingPart: a scrape does not wait for it, shows what was known, and says so.
func TestHangingPart(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		calls := 0
		hang := make(chan struct{})
		o := everything()
		o.Ports.Kernel = func() Kernel {
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls > 1 {
				<-hang
			}
			return Kernel{InFlight: calls}
		}
		m := New(o)
		look := func() map[string]float64 {
			start := time.Now()
			all := map[string]float64{}
			got, err := m.registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range got {
				for _, x := range f.GetMetric() {
					all[f.GetName()+x.String()] = x.GetGauge().GetValue()
					if f.GetName() == "vmlockd_kernel_calls_in_flight" {
						all["in flight"] = x.GetGauge().GetValue()
					}
					if f.GetName() == "vmlockd_scrape_stale" && x.GetLabel()[0].GetValue() == "kernel" {
						all["stale"] = x.GetGauge().GetValue()
					}
				}
			}
			if took := time.Since(start); took > partPatience {
				t.Errorf("a scrape took %v", took)
			}
			return all
		}
		for i, want := range []float64{0, 1, 1} {
			if got := look(); got["stale"] != want || got["in flight"] != 1 {
				t.Errorf("scrape %d: stale %v, in flight %v", i, got["stale"], got["in flight"])
			}
		}
		close(hang)
		fakeclock.Wait()
		if got := look(); got["stale"] != 0 || got["in flight"] != 3 {
			t.Errorf("after it: stale %v, in flight %v", got["stale"], got["in flight"])
		}
	})
}

func TestOnlyReading(t *testing.T) {
	s := httptest.NewServer(New(everything()).Handler())
	defer s.Close()
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.Post(s.URL, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(string(body), "GET") {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	m := New(everything())
	busy := &locking.Error{Kind: locking.KindBusy, Err: locking.ErrBusy}
	for name, e := range map[string]locking.Event{
		"grant": {Kind: locking.Granted, Took: time.Millisecond}, "release": {Kind: locking.Released, Took: time.Millisecond},
		"refusal": {Kind: locking.Refused, Err: busy, Took: time.Millisecond},
	} {
		if n := testing.AllocsPerRun(1000, func() { m.Observe(e) }); n != 0 {
			t.Errorf("a %s allocates %v times", name, n)
		}
	}
}

// BenchmarkObserve is what metrics cost a grant.
func BenchmarkObserve(b *testing.B) {
	m := New(everything())
	e := locking.Event{Kind: locking.Granted, Took: 300 * time.Microsecond}
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.Observe(e)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.Observe(e)
			}
		})
	})
}

func BenchmarkScrape(b *testing.B) {
	m := New(everything())
	for b.Loop() {
		w := httptest.NewRecorder()
		m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}

// family is one metric as it is shown.
type family struct {
	help, kind string
	labels     map[string]map[string]bool // name to values
}

func (f family) labelNames() (names []string) {
	for n := range f.labels {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func families(t *testing.T, m *Metrics) map[string]family {
	t.Helper()
	var g prometheus.Gatherer = m.registry
	got, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]family{}
	for _, f := range got {
		info := family{help: f.GetHelp(), kind: strings.ToLower(f.GetType().String()), labels: map[string]map[string]bool{}}
		for _, x := range f.GetMetric() {
			for _, l := range x.GetLabel() {
				if info.labels[l.GetName()] == nil {
					info.labels[l.GetName()] = map[string]bool{}
				}
				info.labels[l.GetName()][l.GetValue()] = true
			}
		}
		all[f.GetName()] = info
	}
	return all
}
