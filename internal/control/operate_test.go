package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestRelease(t *testing.T) {
	w := newWorld(t, nil)
	w.locks.held, w.locks.alive = []locking.Holder{holder("web", "/a", locking.Exclusive)}, true
	var e Error
	for body, code := range map[string]string{
		`{"resource":"/b"}`:                           CodeNotHeld,
		`{"resource":"/a","pid":8}`:                   CodeNotHeld,
		`{"resource":"/a"}`:                           CodeOwnerLives,
		`{"resource":"/a","force":true}`:              CodeBadRequest,
		`{"resource":"/a","force":true,"reason":" "}`: CodeBadRequest,
		`{}`:                           CodeBadRequest,
		`{"resource":"/a","colour":1}`: CodeBadRequest,
		`{"resource":"/a"} {}`:         CodeBadRequest,
		`[1]`:                          CodeBadRequest,
		``:                             CodeBadRequest,
		`{"node":"2"}`:                 CodeNoCluster,
		`{"resource":"` + strings.Repeat("x", maxBody) + `"}`: CodeBadRequest,
	} {
		if w.do("POST", "/v1/release", body, &e); e.Code != code {
			t.Errorf("%.60s: %v", body, e)
		}
	}
	if len(w.locks.held) != 1 {
		t.Fatal("it was released")
	}

	// What cannot be recorded is not done.
	w.audit.err = errors.New("disk full")
	const force = `{"resource":"/a","force":true,"reason":"it hangs"}`
	if w.do("POST", "/v1/release", force, &e); e.Code != CodeFailed || len(w.locks.held) != 1 || !strings.Contains(e.Message, "disk full") {
		t.Errorf("without a record: %v, held %v", e, w.locks.held)
	}
	w.audit.err, w.audit.told = nil, nil
	var r Released
	if status := w.do("POST", "/v1/release", force, &r); status != http.StatusOK || len(r.Released) != 1 || r.Released[0].VM != "web" {
		t.Errorf("status %d, %+v", status, r)
	}
	if a := w.audit.told; len(a) != 2 || a[0].Outcome != "" || a[1].Outcome != "done" || !a[0].Forced || a[0].Reason != "it hangs" ||
		a[0].Who.Login == "" || len(a[0].Holders) != 1 || a[0].What != "release" {
		t.Errorf("audited %+v", a)
	}

	// A release that goes on by itself is told as done, with a note.
	w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
	w.locks.err = &locking.Error{Kind: locking.KindUnavailable, Op: "release", Err: fmt.Errorf("%w: no quorum", locking.ErrUnderway)}
	r = Released{}
	if status := w.do("POST", "/v1/release", force, &r); status != http.StatusOK || len(r.Released) != 1 || !strings.Contains(r.Note, "no quorum") {
		t.Errorf("status %d, %+v", status, r)
	}
}

// TestAuditHangs: what was done is answered although the disk of the audit log hangs
// since, and the answer says so.
func TestAuditHangs(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.audit.hangs = true
		w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
		begin := time.Now()
		var r Released
		w.do("POST", "/v1/release", `{"resource":"/a"}`, &r)
		if took := time.Since(begin); took != auditPatience || len(r.Released) != 1 || !strings.Contains(r.Note, "could not be recorded") {
			t.Errorf("after %v: %+v", took, r)
		}
		var d Drain
		if w.do("POST", "/v1/drain", `{}`, &d); !d.Draining || !strings.Contains(d.Note, "could not be recorded") {
			t.Errorf("%+v", d)
		}
		d = Drain{}
		if w.do("GET", "/v1/drain", "", &d); d.Note != "" {
			t.Errorf("%+v", d)
		}
		w.locks.held, w.locks.alive = []locking.Holder{holder("web", "/a", locking.Exclusive)}, true
		var e Error
		if w.do("POST", "/v1/release", `{"resource":"/a"}`, &e); e.Code != CodeOwnerLives || !strings.Contains(e.Message, "could not be recorded") {
			t.Errorf("%v", e)
		}
	})
}

// TestReleaseOfWhoWasSeen: between the look and the release the disk may have gone
// to another virtual machine, also one with the same pid.
func TestReleaseOfWhoWasSeen(t *testing.T) {
	w := newWorld(t, nil)
	at := func(pid int32, s int64) locking.Holder {
		h := holder("web", "/a", locking.Shared)
		h.Owner.PID, h.Since = pid, time.Unix(s, 123456789)
		return h
	}
	const force = `{"resource":"/a","force":true,"reason":"it hangs","holders":`
	seen := func(pid int32, s int64) string {
		text, err := json.Marshal(Seen{pid, time.Unix(s, 123456789).UTC()})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	w.locks.held, w.locks.alive = []locking.Holder{at(8, 2000)}, true
	for name, body := range map[string]string{
		"another process":          force + "[" + seen(7, 2000) + "]}",
		"the same pid, later":      force + "[" + seen(8, 1000) + "]}",
		"one of two has gone":      force + "[" + seen(8, 2000) + "," + seen(7, 1000) + "]}",
		"nobody was seen":          force + "[]}",
		"seen, and not this owner": force + "[" + seen(8, 2000) + `],"pid":7}`,
	} {
		var e Error
		if w.do("POST", "/v1/release", body, &e); e.Code != CodeNotHeld || len(w.locks.held) != 1 || len(w.locks.forced) != 0 {
			t.Errorf("%s: %v, held %v", name, e, w.locks.held)
		}
	}
	// Who came later keeps the lock.
	w.locks.held = []locking.Holder{at(7, 1000), at(8, 2000)}
	var r Released
	if status := w.do("POST", "/v1/release", force+"["+seen(7, 1000)+"]}", &r); status != http.StatusOK || len(r.Released) != 1 || r.Released[0].PID != 7 {
		t.Errorf("status %d, %+v", status, r)
	}
	if len(w.locks.held) != 1 || w.locks.held[0].Owner.PID != 8 {
		t.Errorf("held %v", w.locks.held)
	}
}

func TestReleaseOfNode(t *testing.T) {
	for name, tc := range map[string]struct {
		node string
		do   func(*fakeCluster)
		code string
	}{
		"member":         {"2", func(*fakeCluster) {}, CodeNodeMember},
		"member by name": {"n3", func(*fakeCluster) {}, CodeNodeMember},
		"this one":       {"n1", func(*fakeCluster) {}, CodeBadRequest},
		"unknown":        {"9", func(*fakeCluster) {}, CodeNoNode},
		"to be fenced":   {"3", func(c *fakeCluster) { c.c.Nodes[2] = ClusterNode{NodeID: 3, NeedsFencing: true} }, CodeNotNow},
		"recovering": {"3", func(c *fakeCluster) {
			c.c.Nodes[2].Member, c.c.Lockspace.State = false, LockspaceStopped
		}, CodeNotNow},
		"nothing is known":                 {"3", func(c *fakeCluster) { c.c.Nodes, c.c.Error = nil, "no answer" }, CodeNotNow},
		"gone":                             {"3", func(c *fakeCluster) { c.c.Nodes[2].Member = false }, ""},
		"nobody":                           {" ", func(*fakeCluster) {}, CodeNoNode},
		"gone by name":                     {"n3", func(c *fakeCluster) { c.c.Nodes[2].Member = false }, ""},
		"never seen":                       {"n4", func(*fakeCluster) {}, ""},
		"never seen, and nothing is known": {"n4", func(c *fakeCluster) { c.c.Nodes, c.c.Error = nil, "no answer" }, CodeNotNow},
	} {
		c, p := threeNodes()
		tc.do(c)
		if len(c.c.Nodes) == 3 && !c.c.Nodes[2].Member {
			// A daemon that is gone tells nobody its name any more: corosync.conf does.
			p.members = p.members[:2]
		}
		p.names = map[uint32]string{1: "n1", 2: "n2", 3: "n3", 4: "n4"}
		w := newWorld(t, inCluster(c, p))
		var e Error
		var r Released
		out := any(&e)
		if tc.code == "" {
			out = &r
		}
		w.do("POST", "/v1/release", `{"node":"`+tc.node+`"}`, out)
		if e.Code != tc.code || tc.code == "" && (len(r.Released) != 0 || !strings.Contains(r.Note, "given up")) {
			t.Errorf("%s: %v, %+v", name, e, r)
		}
		if len(w.locks.forced) != 0 {
			t.Errorf("%s: something was released here", name)
		}
	}
}

// The locks of a node are gone, and its disks are refused all the same: an operator is
// told why, and what ends it.
func TestReleaseOfNodeHeldOff(t *testing.T) {
	c, p := threeNodes()
	c.c.Nodes[2].Member = false
	c.c.Guard = &GuardState{Mode: "freeze", Vanished: []VanishedNode{{NodeID: 3, Left: 9}}}
	c.c.Guard.complete()
	w := newWorld(t, inCluster(c, p))
	var r Released
	if w.do("POST", "/v1/release", `{"node":"3"}`, &r); !strings.Contains(r.Note, "'vmlockctl confirm-dead 3'") {
		t.Errorf("%+v", r)
	}
	c.c.Guard.Vanished[0].NodeID = 2
	if w.do("POST", "/v1/release", `{"node":"3"}`, &r); r.Note == "" || strings.Contains(r.Note, "confirm-dead") {
		t.Errorf("%+v", r)
	}
	// What it waits for is said also where nobody knows.
	c.c.Lockspace.State = LockspaceStopped
	var e Error
	if w.do("POST", "/v1/release", `{"node":"3"}`, &e); e.Code != CodeNotNow || !strings.HasSuffix(e.Message, "see 'dlm_tool ls'") {
		t.Errorf("%+v", e)
	}
}

func TestDrain(t *testing.T) {
	w := newWorld(t, nil)
	w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
	w.locks.waiting = []locking.Waiter{{Ref: locking.Ref{Name: "/b"}}}
	w.locks.returning = []locking.Returner{{Owner: locking.Owner{Name: "paused", PID: 7}, Ref: locking.Ref{Name: "/c"}}}
	var d Drain
	if w.do("POST", "/v1/drain", `{"reason":"kernel"}`, &d); !d.Draining || d.Drained == nil || d.Reason != "kernel" || len(d.Left) != 1 || len(d.Waiting) != 1 ||
		len(d.Returning) != 1 || d.Returning[0].VM != "paused" || d.Returning[0].PID != 7 || d.Returning[0].Resource != "/c" {
		t.Errorf("%+v", d)
	}
	// Again changes nothing, and is no action.
	if w.do("POST", "/v1/drain", `{"reason":"other"}`, &d); d.Reason != "kernel" || len(w.audit.told) != 2 {
		t.Errorf("%+v, audited %v", d, w.audit.told)
	}
	w.drain.err = errors.New("no space")
	var e Error
	if w.do("POST", "/v1/drain", `{"undo":true}`, &e); e.Code != CodeFailed || w.audit.told[3].Outcome != "no space" {
		t.Errorf("%v, audited %v", e, w.audit.told)
	}
	w.drain.err = nil
	d = Drain{}
	if w.do("POST", "/v1/drain", `{"undo":true}`, &d); d.Draining || d.Drained != nil {
		t.Errorf("%+v", d)
	}
	if status := w.do("DELETE", "/v1/drain", "", &e); status != http.StatusMethodNotAllowed {
		t.Errorf("status %d, %v", status, e)
	}
	if status := w.do("GET", "/v2/drain", "", &e); status != http.StatusNotFound || e.Code != CodeNotFound {
		t.Errorf("status %d, %v", status, e)
	}
}
