package control

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestIdentify(t *testing.T) {
	c, p := threeNodes()
	lv := Disk{Path: "/dev/mapper/vg-web", Type: "lvm", Scope: ScopeCluster, Name: "lvm:1", Resource: "r1", Steps: []string{"it is one"}}
	other := lv
	other.Name, other.Resource = "lvm:2", "r2"
	p.disks = map[uint32]fakeDisks{2: {"/dev/x": lv}, 3: {"/dev/x": other}}
	w := newWorld(t, inCluster(c, p))
	w.s.o.Disks = fakeDisks{"/dev/x": lv}
	ask := func(q string) Identified {
		var d Identified
		if status := w.do("GET", "/v1/identify?"+q, "", &d); status != http.StatusOK {
			t.Fatalf("%s: %d", q, status)
		}
		return d
	}
	if d := ask("path=/dev/x"); d.Asked != "/dev/x" || len(d.Disks) != 1 || d.Disks[0].Name != "lvm:1" || d.Disks[0].NodeID != 1 || d.Disks[0].Node != "n1" {
		t.Errorf("%+v", d)
	}
	d := ask("path=/dev/x&cluster=true")
	var differ []bool
	for _, one := range d.Disks {
		differ = append(differ, one.Differs)
	}
	if !slices.Equal(differ, []bool{false, false, true}) || len(d.Missing) != 0 {
		t.Errorf("%+v", d)
	}
	p.silent[2] = true
	if d := ask("path=/dev/x&cluster=true"); len(d.Disks) != 2 || len(d.Missing) != 1 || d.Missing[0].NodeID != 2 {
		t.Errorf("%+v", d)
	}
	if d := ask("path=/dead"); d.Disks[0].Error == "" || d.Disks[0].Scope != "" {
		t.Errorf("%+v", d)
	}
	for _, q := range []string{"", "path=x", "path=", "path=/" + strings.Repeat("x", 4096), "path=/x&cluster=maybe", "path=/x&y=1"} {
		var e Error
		if status := w.do("GET", "/v1/identify?"+q, "", &e); status != http.StatusBadRequest {
			t.Errorf("%.20s: %d, %v", q, status, e)
		}
	}
	w = newWorld(t, nil)
	w.s.o.Disks = fakeDisks{"/dev/x": lv}
	var e Error
	if status := w.do("GET", "/v1/identify?path=/dev/x&cluster=true", "", &e); status != http.StatusConflict || e.Code != CodeNoCluster {
		t.Errorf("a local backend asks a cluster: %d, %v", status, e)
	}
}

// TestIdentifyWithoutPeer: who is silent takes no more of an operator's second than in a list.
func TestIdentifyWithoutPeer(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c, p := threeNodes()
		p.silent[3] = true
		w := newWorld(t, inCluster(c, p))
		w.s.o.Disks = fakeDisks{"/dev/x": {Path: "/dev/x", Scope: ScopeCluster, Name: "lvm:1"}}
		begin := time.Now()
		var d Identified
		status := w.do("GET", "/v1/identify?path=/dev/x&cluster=true", "", &d)
		if took := time.Since(begin); status != http.StatusOK || took != listTimeout || len(d.Disks) != 2 || len(d.Missing) != 1 {
			t.Errorf("status %d after %v: %+v", status, took, d)
		}
	})
}

func TestDiffers(t *testing.T) {
	shared := Disk{Scope: ScopeCluster, Name: "a"}
	for _, tc := range []struct {
		a, b Disk
		want bool
	}{
		{shared, shared, false},
		{shared, Disk{Scope: ScopeCluster, Name: "b"}, true},
		{shared, Disk{Scope: ScopeHost, Name: "a"}, true},
		{Disk{Scope: ScopeHost, Name: "a"}, Disk{Scope: ScopeHost, Name: "b"}, false},
		{shared, Disk{Error: "x"}, true},
		{Disk{Error: "x"}, Disk{Error: "y"}, false},
	} {
		if got := differs(tc.a, tc.b); got != tc.want {
			t.Errorf("%+v and %+v: %v", tc.a, tc.b, got)
		}
	}
}

// Who has a disk is found under whatever path it is asked for.
func TestWhoByAnotherPath(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	w.s.o.Disks = fakeDisks{"/dev/x": {Resource: "r1"}, "/dev/y": {Resource: "r1"}}
	held := holder("web", "/dev/there", locking.Shared)
	held.ID = "r1"
	p.held[2] = []locking.Holder{held, holder("mail", "/dev/else", locking.Shared)}
	here := holder("db", "/dev/here", locking.Shared)
	here.ID = "r1"
	w.locks.held = []locking.Holder{here}
	var h Holders
	w.do("GET", "/v1/who?"+url.Values{"path": {"/dev/x", "/dev/y"}}.Encode(), "", &h)
	if !slices.Equal(vms(h.Holders), []string{"1db", "2web"}) {
		t.Errorf("holders %v", vms(h.Holders))
	}
}

// A disk that cannot be looked at does not make the answers of others late.
func TestWhoHasWhatHangs(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c, p := threeNodes()
		w := newWorld(t, inCluster(c, p))
		w.s.o.Disks = fakeDisks{"/dev/x": {Resource: "r1"}}
		there := holder("db", "/dev/there", locking.Shared)
		there.ID = "r1"
		p.held[2] = []locking.Holder{holder("web", "/hangs/a", locking.Shared), there}
		begin := time.Now()
		var h Holders
		w.do("GET", "/v1/who?path=/hangs/a&path=/dev/x", "", &h)
		if took := time.Since(begin); took > time.Second || !slices.Equal(vms(h.Holders), []string{"2db", "2web"}) || len(h.Missing) != 0 {
			t.Errorf("after %v: %+v", took, h)
		}
	})
}

// A lock that goes to another host, on which the disk has another path, is not shown
// on both.
func TestLockThatMovesToAnotherPath(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	w.s.o.Disks = fakeDisks{"/dev/here": {Resource: "r1"}}
	here, there := holder("web", "/dev/here", locking.Exclusive), holder("web", "/dev/there", locking.Exclusive)
	here.ID, there.ID = "r1", "r1"
	for _, target := range []string{"/v1/holders?cluster=1", "/v1/who?path=/dev/here", "/v1/who?path=/dev/here&lockspace="} {
		p.held[2], p.asked, w.locks.held = []locking.Holder{there}, nil, []locking.Holder{here}
		p.onAsk = func(p *fakePeers) {
			if len(p.asked) > 0 {
				p.held[2] = nil
			}
		}
		var h Holders
		w.do("GET", target, "", &h)
		if !slices.Equal(vms(h.Holders), []string{"1web"}) || len(p.asked) != 1 || len(p.asked[0]) != 1 || p.asked[0][0].ID != "r1" || len(h.Missing) != 0 {
			t.Errorf("%s: holders %v, asked again %v, missing %v", target, vms(h.Holders), p.asked, h.Missing)
		}
	}
}

// Disks of two hosts with equal paths are not taken for one that moves.
func TestPrivateDisksAreNotDisputed(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	one, two := holder("web", "/a", locking.Exclusive), holder("web", "/a", locking.Exclusive)
	one.ID, two.ID = "r1", "r2"
	p.held[2], w.locks.held = []locking.Holder{two}, []locking.Holder{one}
	var h Holders
	w.do("GET", "/v1/holders?cluster=1", "", &h)
	if !slices.Equal(vms(h.Holders), []string{"1web", "2web"}) || len(p.asked) != 0 {
		t.Errorf("holders %v, asked again %v", vms(h.Holders), p.asked)
	}
}

func TestRulesWarnings(t *testing.T) {
	for _, tc := range []struct {
		digest, want string
	}{{"r", ""}, {"s", "by other rules"}, {"", "upgrade them"}} {
		c, p := threeNodes()
		p.members[2].RulesDigest = tc.digest
		w := newWorld(t, inCluster(c, p))
		text := ""
		for _, one := range w.s.Status(t.Context()).Warnings {
			if one.Code == WarnRules {
				text = one.Message
			}
		}
		if (text == "") != (tc.want == "") || !strings.Contains(text, tc.want) || tc.want != "" && !strings.Contains(text, "n3 (3)") {
			t.Errorf("digest %q: %q", tc.digest, text)
		}
	}
}
