package deadline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/vmlockd/vmlockd/internal/control"
)

// controlSocket is where the daemon answers operators.
const controlSocket = "/run/vmlockd/control.sock"

// mostRead bounds, in bytes, an answer to an operator. Metrics are the longest, of
// less than 100 KiB.
const mostRead = 4 << 20

// get asks a node's daemon as operators do, on a connection of its own.
func (s *suite) get(node int, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vmlockd"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.Node(node).HTTPClient(controlSocket).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostRead))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

// rounds is how often each question is asked.
const rounds = 5

// operatorsAreAnswered: node 1 has lost nodes 2 and 3, and its lockspace is stopped.
// Whoever looks at it is answered within a second all the same, and told why nothing
// is granted and what is held: 'mine', by the virtual machine 'holder'.
func (s *suite) operatorsAreAnswered(t *testing.T, watch *asker) {
	t.Helper()
	began := time.Now()
	end := ownPauses()
	var asked []answer
	told := map[string]int{} // how often dlm_controld's word on quorum was passed on
	for range rounds {
		for _, q := range []struct {
			path  string
			check func(body []byte) (quorumTold bool, err error)
		}{
			{"/v1/status", statusWithoutQuorum},
			{"/v1/holders", holdersHere},
			{"/v1/holders?cluster=true", holdersWithoutOthers},
			{"/v1/who?path=mine", holdersWithoutOthers},
			{"/metrics", metricsWithoutQuorum},
		} {
			begun := time.Now()
			body, err := s.get(1, q.path)
			asked = append(asked, answer{begun, time.Since(begun), q.path})
			var quorumTold bool
			if err == nil {
				quorumTold, err = q.check(body)
			}
			if err != nil {
				t.Errorf("%s: %v", q.path, err)
			}
			if quorumTold {
				told[q.path]++
			}
		}
	}
	own := end()
	inTime(t, asked, either(watch.answers(t), own), began)
	// It may miss one question on a busy machine, but not all of them.
	for _, path := range []string{"/v1/status", "/metrics"} {
		if told[path] == 0 {
			t.Errorf("%s never said that there is no quorum", path)
		}
	}
}

// statusWithoutQuorum says whether dlm_controld's answer is in it. Why the lockspace
// does not run must be there in any case.
func statusWithoutQuorum(body []byte) (quorumTold bool, err error) {
	var st control.Status
	if err := json.Unmarshal(body, &st); err != nil {
		return false, err
	}
	c := st.Cluster
	if c == nil || c.Lockspace.State != control.LockspaceStopped || !strings.Contains(c.Lockspace.WaitsFor, "the cluster has no quorum: 2 of 3 nodes are missing: 2, 3") {
		return false, fmt.Errorf("does not say that the lockspace waits for quorum: %s", body)
	}
	if c.Quorate == control.Yes {
		return false, fmt.Errorf("says that there is quorum: %s", body)
	}
	quorumTold = c.Quorate == control.No
	for _, code := range []string{control.WarnLockspace, control.WarnNoQuorum} {
		has := slices.ContainsFunc(st.Warnings, func(w control.Warning) bool { return w.Code == code })
		if want := code == control.WarnLockspace || quorumTold; has != want {
			return false, fmt.Errorf("warning %s: %v, quorate: %s: %s", code, has, c.Quorate, body)
		}
	}
	return quorumTold, nil
}

func holdersHere(body []byte) (bool, error) {
	_, err := mineIn(body)
	return false, err
}

// holdersWithoutOthers is for answers about the cluster, which must name the nodes that
// said nothing.
func holdersWithoutOthers(body []byte) (bool, error) {
	h, err := mineIn(body)
	for _, id := range []uint32{2, 3} {
		// 0 stands for all others.
		missing := slices.ContainsFunc(h.Missing, func(m control.Missing) bool { return m.NodeID == id || m.NodeID == 0 })
		if err == nil && !missing {
			err = fmt.Errorf("does not say that node %d is missing: %s", id, body)
		}
	}
	return false, err
}

// mineIn returns an error unless 'mine' is there once, held by 'holder' on node 1.
func mineIn(body []byte) (h control.Holders, err error) {
	if err := json.Unmarshal(body, &h); err != nil {
		return h, err
	}
	n := 0
	for _, one := range h.Holders {
		if one.Resource != "mine" {
			continue
		}
		n++
		if one.VM != "holder" || one.NodeID != 1 || one.Mode != "exclusive" || one.PID == 0 {
			return h, fmt.Errorf("'mine' is said to be held by %+v", one)
		}
	}
	if n != 1 {
		return h, fmt.Errorf("'mine' is there %d times: %s", n, body)
	}
	return h, nil
}

// metricsWithoutQuorum says whether dlm_controld's answer is in them.
func metricsWithoutQuorum(body []byte) (quorumTold bool, err error) {
	m, err := parseMetrics(body)
	if err != nil {
		return false, err
	}
	for name, want := range map[string]float64{
		"vmlockd_lockspace_running":                   0,
		"vmlockd_lockspace_stopped{cause=quorum}":     1,
		"vmlockd_lockspace_stopped{cause=recovering}": 0,
		"vmlockd_locks_held{mode=shared}":             0,
	} {
		if got, ok := m[name]; !ok || got != want {
			return false, fmt.Errorf("%s is %v (there: %v), not %v", name, got, ok, want)
		}
	}
	if n := m["vmlockd_locks_held{mode=exclusive}"]; n < 1 {
		return false, fmt.Errorf("%v locks are held", n)
	}
	quorate, told := m["vmlockd_cluster_quorate"]
	if told && quorate != 0 {
		return false, fmt.Errorf("vmlockd_cluster_quorate is %v", quorate)
	}
	return told, nil
}

// parseMetrics reads gauges and counters as Prometheus does, by name{label=value}.
func parseMetrics(body []byte) (map[string]float64, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("no valid exposition: %w: %s", err, body)
	}
	values := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			id := name
			if len(labels) > 0 {
				id += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.Gauge != nil:
				values[id] = m.Gauge.GetValue()
			case m.Counter != nil:
				values[id] = m.Counter.GetValue()
			}
		}
	}
	return values, nil
}
