package control

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestEverythingAnswersSoon: while a peer is frozen and dlm_controld says nothing, every
// path answers within a second, and names who did not answer where that counts. What
// an operator needs then - who is stopped, who is dead - is what this is for.
func TestEverythingAnswersSoon(t *testing.T) {
	questions := []struct {
		method, target, body string
		status               int
		missing              []uint32 // nodes that the answer must name
	}{
		{"GET", "/v1/status", "", 200, nil},
		{"GET", "/v1/holders", "", 200, nil},
		{"GET", "/v1/holders?cluster=true", "", 200, []uint32{3}},
		{"GET", "/v1/holders?cluster=true&node=3", "", 200, []uint32{3}},
		{"GET", "/v1/who?path=/a", "", 200, []uint32{3}},
		{"GET", "/v1/who?path=/hangs/a", "", 200, []uint32{3}},
		{"GET", "/v1/who?path=/a&lockspace=/x", "", 200, []uint32{3}},
		{"GET", "/v1/refused", "", 200, nil},
		{"GET", "/v1/identify?path=/hangs/a&cluster=true", "", 200, []uint32{3}},
		{"GET", "/v1/events?since=0&follow=false", "", 200, nil},
		{"GET", "/v1/drain", "", 200, nil},
		{"POST", "/v1/drain", `{"reason":"x"}`, 200, nil},
		{"POST", "/v1/drain", `{"undo":true}`, 200, nil},
		{"POST", "/v1/release", `{"resource":"/a"}`, 200, nil},
		{"POST", "/v1/release", `{"node":"2"}`, 409, nil},
		{"POST", "/v1/release", `{"node":"n1"}`, 400, nil},
		{"POST", "/v1/release", `{"node":"9"}`, 503, nil},
		{"POST", "/v1/confirm-dead", `{"node":"3","reason":"x"}`, 200, nil},
		{"POST", "/v1/confirm-dead", `{"node":"9","reason":"x"}`, 404, nil},
		{"GET", "/v1/settle", "", 200, nil},
		{"POST", "/v1/settle", `{"force":true,"reason":"x"}`, 200, nil},
	}
	fakeclock.Test(t, func(t *testing.T) {
		asked := map[string]bool{}
		for _, q := range questions {
			c, p := threeNodes()
			c.silent, p.silent[3], p.members[2].Silent = true, true, true
			c.c.Error = "dlm_controld does not answer"
			w := newWorld(t, func(o *Options) {
				inCluster(c, p)(o)
				o.Guard, o.Disks, o.Settler = &fakeGuard{dead: 3}, fakeDisks{}, calm{}
			})
			w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
			path, _, _ := strings.Cut(q.target, "?")
			asked[q.method+" "+path] = true
			begin := time.Now()
			var text json.RawMessage
			var out any = &text
			if path == "/v1/events" {
				out = new(Line) // one, of the event that there is
				w.ev.Observe(event(locking.Granted, "/a"))
			}
			status := w.do(q.method, q.target, q.body, out)
			if took := time.Since(begin); status != q.status || took > time.Second {
				t.Errorf("%s %s: status %d after %v", q.method, q.target, status, took)
			}
			if status != http.StatusOK {
				continue
			}
			var incomplete struct {
				Missing []Missing `json:"missing"`
			}
			if err := json.Unmarshal(text, &incomplete); err != nil && path != "/v1/events" {
				t.Fatal(err)
			}
			var nodes []uint32
			for _, m := range incomplete.Missing {
				nodes = append(nodes, m.NodeID)
			}
			if !slices.Equal(nodes, q.missing) {
				t.Errorf("%s %s: nodes %v are missing, want %v", q.method, q.target, nodes, q.missing)
			}
		}
		w := newWorld(t, func(o *Options) { o.Settler = calm{} })
		for path, methods := range w.s.routes {
			for method := range methods {
				if !asked[method+" "+path] {
					t.Errorf("nobody has asked %s %s: add a question", method, path)
				}
			}
		}
	})
}

// calm is a Settler without a doubt.
type calm struct{ Settler }

func (calm) Doubt() *Doubt { return nil }
