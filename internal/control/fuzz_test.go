package control

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// FuzzRequests sends any request to every path. Each gets an answer in JSON of
// bounded length, nothing is forced without "force" and a reason, and nobody else
// loses a lock than the holder that was named.
func FuzzRequests(f *testing.F) {
	f.Add("GET", "/v1/holders", "cluster=1&path=*", []byte(""))
	f.Add("GET", "/v1/who", "path=/a&lockspace=", []byte(""))
	f.Add("GET", "/v1/events", "since=0&follow=false", []byte(""))
	f.Add("POST", "/v1/release", "", []byte(`{"resource":"/a","lockspace":"","force":true,"reason":"x","pid":7}`))
	f.Add("POST", "/v1/release", "", []byte(`{"node":"2"}`))
	f.Add("POST", "/v1/drain", "", []byte(`{"undo":false,"reason":"x"}`))
	f.Add("GET", "/v1/drain", "", []byte(""))
	f.Add("GET", "/v1/status", "a=%00", []byte("{}"))
	f.Add("GET", "/v1/identify", "path=/a&cluster=true", []byte(""))
	f.Add("GET", "/v1/refused", "", []byte(""))
	f.Add("GET", "/v1/settle", "", []byte(""))
	f.Add("POST", "/v1/settle", "", []byte(`{"force":true,"reason":"x"}`))
	f.Add("POST", "/v1/confirm-dead", "", []byte(`{"node":"3","reason":"x"}`))
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		c, p := threeNodes()
		guard, doubt := &fakeGuard{dead: 3}, &doubtful{}
		w := newWorld(t, func(o *Options) {
			inCluster(c, p)(o)
			o.Guard, o.Disks, o.Settler = guard, fakeDisks{"/a": {Path: "/a", Name: "lvm:1"}}, doubt
		})
		w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive), holder("db", "/b", locking.Shared)}
		w.locks.alive = true
		for range 3 {
			w.ev.Observe(event(locking.Refused, "/a"))
		}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), peerKey{}, rpc.Peer{UID: 0, PID: 1}))
		cancel() // so that a stream ends
		r := httptest.NewRequest("GET", "/", bytes.NewReader(body)).WithContext(ctx)
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		rec := httptest.NewRecorder()
		testenv.Bounded(t, 100, len(query)+len(path)+len(body), func() { w.s.route(rec, r) })
		if rec.Body.Len() > 64<<10+6*(len(query)+len(body)) {
			t.Fatalf("an answer of %d bytes", rec.Body.Len())
		}
		d := json.NewDecoder(rec.Body)
		for d.More() {
			var v map[string]any
			if err := d.Decode(&v); err != nil {
				t.Fatalf("status %d with an answer that is no JSON: %v", rec.Code, err)
			}
			if rec.Code != http.StatusOK && v["error"] == nil {
				t.Fatalf("status %d with %v", rec.Code, v)
			}
		}
		var q ReleaseRequest
		if len(w.locks.held) < 2 && (json.Unmarshal(body, &q) != nil || !q.Force || q.Reason == "" || method != http.MethodPost) {
			t.Fatalf("%s %s %q has released something", method, path, body)
		}
		if len(w.locks.held) == 0 {
			t.Fatal("one request has released two resources")
		}
		var settle SettleRequest
		if doubt.settled > 0 && (json.Unmarshal(body, &settle) != nil || !settle.Force || settle.Reason == "" || method != http.MethodPost) {
			t.Fatalf("%s %s %q has ended the doubt", method, path, body)
		}
		var dead ConfirmDeadRequest
		if len(guard.said) > 0 && (json.Unmarshal(body, &dead) != nil || dead.Node == "" || dead.Reason == "" || method != http.MethodPost) {
			t.Fatalf("%s %s %q has confirmed that %v are dead", method, path, body, guard.said)
		}
	})
}

// doubtful is a Settler with a doubt, until it is settled.
type doubtful struct{ settled int }

func (d *doubtful) Doubt() *Doubt {
	if d.settled > 0 {
		return nil
	}
	return &Doubt{Damage: "bytes 96 to 160 are no record", Unexplained: []string{"/a"}}
}

func (d *doubtful) Settle(context.Context, Caller, string) (int, error) {
	d.settled++
	return 1, nil
}

func FuzzGlob(f *testing.F) {
	f.Add("*a?", "bad")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 1000 || len(text) > 1000 {
			return
		}
		testenv.Bounded(t, 1, 1, func() { _ = glob(pattern, text) })
		if !glob("*"+text, text) && !bytes.ContainsAny([]byte(text), "*?") {
			t.Fatalf("%q does not match itself", text)
		}
		if glob(pattern, text) && !glob("*"+pattern+"*", "x"+text+"x") {
			t.Fatalf("%q matches %q, and not with something around it", pattern, text)
		}
	})
}
