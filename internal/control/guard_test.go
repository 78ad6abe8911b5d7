package control

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// fakeGuard knows one node that is no member.
type fakeGuard struct {
	dead uint32
	said []uint32
	err  error // why it cannot be done now
}

func (g *fakeGuard) ConfirmDead(node uint32) error {
	switch {
	case node != g.dead:
		return &Error{CodeNodeMember, "it is a member of the cluster"}
	case g.err != nil:
		return g.err
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
	// What has gone wrong otherwise is not called a member.
	g.err = errors.New("it could not be noted")
	if status := w.do("POST", "/v1/confirm-dead", `{"node":"3","reason":"x"}`, &e); status != http.StatusConflict || e.Code != CodeNotNow {
		t.Errorf("status %d, %+v", status, e)
	}
	g.err, w.audit.told = nil, nil
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

// Which node is off must be beyond doubt: a name that several have means none of
// them, and an empty one, as of a variable that is not set, nobody, also where the name
// of a node is not known.
func TestConfirmDeadWhichNode(t *testing.T) {
	c, p := threeNodes()
	g := &fakeGuard{dead: 3}
	w := newWorld(t, func(o *Options) {
		inCluster(c, p)(o)
		o.Guard = g
	})
	p.members[1].Name, p.members[2].Name = "twin", "twin"
	c.c.Nodes = append(c.c.Nodes, ClusterNode{NodeID: 4})          // without a name
	c.c.Guard = &GuardState{Vanished: []VanishedNode{{NodeID: 5}}} // that nothing else tells of
	c.c.Guard.complete()
	for node, code := range map[string]string{"": CodeNoNode, "twin": CodeBadRequest, "0": CodeNoNode, "03": CodeNoNode, "6": CodeNoNode} {
		var e Error
		if w.do("POST", "/v1/confirm-dead", `{"node":"`+node+`","reason":"x"}`, &e); e.Code != code || len(g.said) != 0 || len(w.audit.told) != 0 {
			t.Errorf("%q: %+v, want %s, told %v, audited %v", node, e, code, g.said, w.audit.told)
		}
		if code == CodeBadRequest && !strings.Contains(e.Message, "2 or 3") {
			t.Errorf("%q: %s", node, e.Message)
		}
	}
	// A number is a number, whatever others call themselves.
	p.members[1].Name = "4"
	for node, id := range map[string]uint32{"3": 3, "4": 4, "5": 5, "twin": 3} {
		g.dead, g.said = id, nil
		var d ConfirmedDead
		if status := w.do("POST", "/v1/confirm-dead", `{"node":"`+node+`","reason":"x"}`, &d); status != http.StatusOK || d.NodeID != id || len(g.said) != 1 {
			t.Errorf("%q: status %d, %+v, told %v", node, status, d, g.said)
		}
	}
}

// Every warning says what is so, and what to do about it.
func TestGuardWarnings(t *testing.T) {
	type warnings map[string][]string // by code, texts that must be there
	freeze := func(change func(*GuardState)) GuardState {
		g := GuardState{Mode: "freeze", Promise: true, Grace: 10, HoldOff: 60, Least: 42}
		change(&g)
		return g
	}
	vanished := func(v VanishedNode) GuardState {
		return freeze(func(g *GuardState) { g.Refuses, g.Vanished = "node 3", []VanishedNode{v} })
	}
	for name, tc := range map[string]struct {
		g    GuardState
		want warnings
	}{
		"well":      {freeze(func(*GuardState) {}), nil},
		"fencing":   {GuardState{Mode: "fencing"}, nil},
		"too short": {freeze(func(g *GuardState) { g.Promise, g.Unsafe, g.Refuses = false, "guard.hold_off is 1s", "it" }), warnings{WarnGuard: {"guard.hold_off is 1s"}}},
		"at start":  {freeze(func(g *GuardState) { g.Refuses = "dlm_controld has not answered yet" }), warnings{WarnGuard: {"dlm_controld has not answered yet"}}},
		"timeouts are not known": {freeze(func(g *GuardState) { g.Promise, g.Least, g.Refuses = false, 0, "corosync has not said" }),
			warnings{WarnGuard: {"corosync has not said"}}},
		"auto":             {GuardState{Mode: "auto", Refuses: "dlm_controld has not said"}, warnings{WarnGuard: {"not known yet whether dlm_controld fences", "nothing new is granted", "systemctl status dlm"}}},
		"auto, and unsafe": {GuardState{Mode: "auto", Unsafe: "guard.hold_off is 1s", Refuses: "dlm_controld has not said"}, warnings{WarnGuard: {"guard.hold_off is 1s"}}},
		"lost": {freeze(func(g *GuardState) {
			g.Lost, g.Refuses, g.Stopped = "no quorum", "no quorum", []StoppedVM{{VM: "web", PID: 7, Left: 3}}
		}), warnings{WarnGuard: {"no quorum. ", "is stopped (1)", "corosync-quorumtool -s"}}},
		"lost, nothing held": {freeze(func(g *GuardState) { g.Lost = "no quorum" }), warnings{WarnGuard: {"no quorum. ", "nothing is stopped, as nothing here has locks", "dlm_tool status"}}},
		"lost, one goes on": {freeze(func(g *GuardState) {
			g.Lost, g.Promise, g.NotStopped = "no quorum", false, []LooseVM{{VM: "db", PID: 8}, {VM: "whoever"}, {PID: 9}}
		}), warnings{WarnGuard: {"nothing is stopped. "}, WarnNotStopped: {"db (pid 8), whoever, process 9.", "virsh destroy"}}},
		"stops for good": {freeze(func(g *GuardState) { g.Stopped = []StoppedVM{{VM: "web", PID: 7, Left: 3, Stays: true}} }), nil},
		"stopped for good": {freeze(func(g *GuardState) {
			g.Stopped = []StoppedVM{{VM: "web", PID: 7, Stays: true}, {VM: "db", PID: 8}}
		}), warnings{WarnStopped: {"for good: web (pid 7).", "never go on", "virsh destroy"}}},
		"many": {freeze(func(g *GuardState) {
			for range 11 {
				g.Stopped = append(g.Stopped, StoppedVM{VM: "web", PID: 7, Stays: true})
			}
		}), warnings{WarnStopped: {"web (pid 7), and 3 more."}}},
		"ignored":  {freeze(func(g *GuardState) { g.Promise = false }), warnings{WarnGuard: {"on_loss"}}},
		"watchdog": {freeze(func(g *GuardState) { g.Watchdog = "busy" }), warnings{WarnGuard: {"busy"}}},
		"vanished": {vanished(VanishedNode{NodeID: 3, Left: 40.2, Seen: true, Promised: true}),
			warnings{WarnHoldOff: {"n3 (node 3) has vanished", "for 41 seconds more", "confirm-dead 3"}}},
		"away": {vanished(VanishedNode{NodeID: 9, Left: 41, Promised: true}), warnings{WarnHoldOff: {"node 9 was away", "confirm-dead 9"}}},
		"no promise": {vanished(VanishedNode{NodeID: 3, Forever: true, Seen: true}),
			warnings{WarnHoldOff: {"n3 (node 3) has vanished", "for ever, as its guard had not promised", "until it is back", "switch it off", "confirm-dead 3"}}},
		"no majority": {vanished(VanishedNode{NodeID: 3, Forever: true, Seen: true, Promised: true}),
			warnings{WarnHoldOff: {"for ever, as quorum is no majority", "until it is back", "switch it off", "confirm-dead 3"}}},
	} {
		c, p := threeNodes()
		c.c.Guard = &tc.g
		if tc.g.complete(); tc.g.Mode != "fencing" {
			c.c.Fencing = No // whether or not it is safe, this host is not without a guard
		}
		var st Status
		newWorld(t, inCluster(c, p)).do("GET", "/v1/status", "", &st)
		got := warnings{}
		for _, w := range st.Warnings {
			got[w.Code] = append(got[w.Code], w.Message)
			for _, text := range tc.want[w.Code] {
				if !strings.Contains(w.Message, text) {
					t.Errorf("%s: %q lacks %q", name, w.Message, text)
				}
			}
		}
		if len(got) != len(tc.want) || len(st.Warnings) != len(tc.want) {
			t.Errorf("%s: %q, want one for each of %v", name, st.Warnings, slices.Collect(maps.Keys(tc.want)))
		}
	}
}

// complete makes lists of what is nil, as the daemon does.
func (g *GuardState) complete() {
	g.Stopped = append([]StoppedVM{}, g.Stopped...)
	g.NotStopped = append([]LooseVM{}, g.NotStopped...)
	g.Vanished = append([]VanishedNode{}, g.Vanished...)
}
