package control

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// fakeGuard knows one node that is no member.
type fakeGuard struct {
	dead uint32
	said []uint32
}

func (g *fakeGuard) ConfirmDead(node uint32) error {
	if node != g.dead {
		return errors.New("it is a member of the cluster")
	}
	g.said = append(g.said, node)
	return nil
}

func TestConfirmDead(t *testing.T) {
	c, p := threeNodes()
	g := &fakeGuard{dead: 3}
	w := newWorld(t, func(o *Options) {
		inCluster(c, p)(o)
		o.Guard = g
	})
	var e Error
	for body, code := range map[string]string{
		`{"node":"3"}`:              CodeBadRequest,
		`{"node":"3","reason":" "}`: CodeBadRequest,
		`{"node":"9","reason":"x"}`: CodeNoNode,
		`{"node":"","reason":"x"}`:  CodeNoNode,
		`{"node":"2","reason":"x"}`: CodeNodeMember,
		`{"node":"3","reason":"` + strings.Repeat("x", maxReason+1) + `"}`: CodeBadRequest,
	} {
		if w.do("POST", "/v1/confirm-dead", body, &e); e.Code != code {
			t.Errorf("%.60s: %+v, want %s", body, e, code)
		}
	}
	w.audit.told = nil
	var d ConfirmedDead
	if status := w.do("POST", "/v1/confirm-dead", `{"node":"n3","reason":"unplugged"}`, &d); status != http.StatusOK || d.NodeID != 3 || len(g.said) != 1 {
		t.Fatalf("status %d, %+v, told %v", status, d, g.said)
	}
	if told := w.audit.told; len(told) != 2 || told[0].Node != 3 || told[0].Outcome != "" || told[1].Outcome != "done" || told[0].Reason != "unplugged" {
		t.Errorf("recorded: %+v", told)
	}
	// It is done, and what came of it cannot be recorded: the operator is told.
	w.audit.hangs = true
	if status := w.do("POST", "/v1/confirm-dead", `{"node":"n3","reason":"unplugged"}`, &d); status != http.StatusOK || !strings.Contains(d.Note, "could not be recorded") {
		t.Errorf("status %d, %+v", status, d)
	}
	w.audit.hangs, g.said = false, g.said[:1]
	// What cannot be recorded is not done.
	w.audit.err = errors.New("no space")
	if w.do("POST", "/v1/confirm-dead", `{"node":"3","reason":"x"}`, &e); e.Code != CodeFailed || len(g.said) != 1 {
		t.Errorf("%+v, told %v", e, g.said)
	}
	w = newWorld(t, nil)
	if w.do("POST", "/v1/confirm-dead", `{"node":"3","reason":"x"}`, &e); e.Code != CodeNoCluster {
		t.Errorf("without a guard: %+v", e)
	}
}

func TestGuardWarnings(t *testing.T) {
	for name, tc := range map[string]struct {
		g    GuardState
		code string
		text string
	}{
		"too short": {GuardState{Mode: "freeze", Promise: true, Unsafe: "guard.hold_off is 1s"}, WarnGuard, "guard.hold_off is 1s"},
		"at start":  {GuardState{Mode: "freeze", Promise: true, Refuses: "dlm_controld has not answered yet"}, WarnGuard, "dlm_controld has not answered yet"},
		"lost":      {GuardState{Mode: "freeze", Promise: true, Lost: "no quorum", Refuses: "no quorum", Stopped: []StoppedVM{{VM: "web"}}}, WarnGuard, "stopped (1)"},
		"ignored":   {GuardState{Mode: "freeze"}, WarnGuard, "on_loss"},
		"watchdog":  {GuardState{Mode: "freeze", Promise: true, Watchdog: "busy"}, WarnGuard, "busy"},
		"vanished":  {GuardState{Mode: "freeze", Promise: true, Refuses: "node 3", Vanished: []VanishedNode{{NodeID: 3, Left: 41, Seen: true}}}, WarnHoldOff, "vanished and may still use its disks: nothing new is granted for 41 seconds"},
		"away":      {GuardState{Mode: "freeze", Promise: true, Vanished: []VanishedNode{{NodeID: 3, Left: 41}}}, WarnHoldOff, "was away"},
		"for ever":  {GuardState{Mode: "freeze", Promise: true, Vanished: []VanishedNode{{NodeID: 3, Forever: true}}}, WarnHoldOff, "until it is back"},
	} {
		c, p := threeNodes()
		c.c.Guard = &tc.g
		if tc.g.Stopped == nil {
			tc.g.Stopped = []StoppedVM{}
		}
		if tc.g.Vanished == nil {
			tc.g.Vanished = []VanishedNode{}
		}
		var st Status
		newWorld(t, inCluster(c, p)).do("GET", "/v1/status", "", &st)
		if len(st.Warnings) != 1 || st.Warnings[0].Code != tc.code || !strings.Contains(st.Warnings[0].Message, tc.text) {
			t.Errorf("%s: %+v", name, st.Warnings)
		}
	}
}
