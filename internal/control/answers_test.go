package control

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func vms(list []Holder) (names []string) {
	for _, h := range list {
		names = append(names, fmt.Sprint(h.NodeID, h.VM))
	}
	slices.Sort(names)
	return names
}

func TestHolders(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
	p.held[2] = []locking.Holder{holder("db", "/b", locking.Shared)}
	p.held[3] = []locking.Holder{holder("mail", "/b", locking.Shared)}
	for target, want := range map[string][]string{
		"/v1/holders":                                  {"1web"},
		"/v1/holders?cluster=true":                     {"1web", "2db", "3mail"},
		"/v1/holders?cluster=1&node=n2":                {"2db"},
		"/v1/holders?cluster=1&node=3":                 {"3mail"},
		"/v1/holders?cluster=1&mode=shared&vm=db":      {"2db"},
		"/v1/holders?cluster=1&path=*b":                {"2db", "3mail"},
		"/v1/holders?vm=nobody":                        nil,
		"/v1/who?path=/b":                              {"2db", "3mail"},
		"/v1/who?path=/b&lockspace=/other":             nil,
		"/v1/who?path=/a&path=/also-called&lockspace=": {"1web"},
	} {
		var h Holders
		if status := w.do("GET", target, "", &h); status != http.StatusOK || !slices.Equal(vms(h.Holders), want) || len(h.Missing) != 0 {
			t.Errorf("%s: status %d, holders %v, missing %v", target, status, vms(h.Holders), h.Missing)
		}
	}
	// Who mistypes a node is not told that it holds nothing.
	for _, target := range []string{"/v1/holders?cluster=1&node=n4", "/v1/holders?cluster=1&node=4"} {
		var e Error
		if status := w.do("GET", target, "", &e); status != http.StatusNotFound || e.Code != CodeNoNode {
			t.Errorf("%s: status %d, %v", target, status, e)
		}
	}
	p.names = map[uint32]string{4: "n4"}
	var h Holders
	if status := w.do("GET", "/v1/holders?cluster=1&node=n4", "", &h); status != http.StatusOK || len(h.Holders) != 0 {
		t.Errorf("a node that is configured: status %d, %v", status, h)
	}
	for _, target := range []string{
		"/v1/holders?mode=both", "/v1/holders?cluster=perhaps", "/v1/holders?color=red", "/v1/who", "/v1/who?path=", "/v1/status?x=1",
		"/v1/holders?path=" + strings.Repeat("a", maxPattern+1), "/v1/who?" + strings.Repeat("path=a&", maxNames+1), "/v1/events?since=-1", "/v1/holders?%zz",
	} {
		var e Error
		if status := w.do("GET", target, "", &e); status != http.StatusBadRequest || e.Code != CodeBadRequest {
			t.Errorf("%.40s: status %d, %v", target, status, e)
		}
	}
}

// TestHashedName: a disk is found under the name that libvirt makes of it, which is
// also what sha256sum says.
func TestHashedName(t *testing.T) {
	w := newWorld(t, nil)
	h := holder("web", "a2c8a5a6ae8a2d2d1c9c62b2b0a6f0e1", locking.Exclusive)
	h.Ref = locking.Ref{Lockspace: "/locks", Name: HashedName("/srv/vm/web.img")}
	w.locks.held = []locking.Holder{h}
	var got Holders
	w.do("GET", "/v1/who?path=/srv/vm/web.img", "", &got)
	if len(got.Holders) != 1 || len(got.Holders[0].Resource) != 64 {
		t.Errorf("got %+v", got)
	}
	if HashedName("abc") != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Error(HashedName("abc"))
	}
}

// TestSilentPeers: with nodes that do not answer every answer is there within a
// second, and says what is missing.
func TestSilentPeers(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c, p := threeNodes()
		w := newWorld(t, inCluster(c, p))
		p.silent[3], c.silent = true, true
		p.members[2].Silent = true
		p.held[2] = []locking.Holder{holder("db", "/b", locking.Exclusive)}
		for _, target := range []string{"/v1/holders?cluster=1", "/v1/who?path=/b"} {
			begin := time.Now()
			var h Holders
			w.do("GET", target, "", &h)
			if took := time.Since(begin); took > time.Second {
				t.Errorf("%s took %v", target, took)
			}
			if !slices.Equal(vms(h.Holders), []string{"2db"}) || len(h.Missing) != 1 || h.Missing[0].NodeID != 3 || h.Missing[0].Error == "" {
				t.Errorf("%s: %+v", target, h)
			}
		}
		begin := time.Now()
		var st Status
		w.do("GET", "/v1/status", "", &st)
		if took := time.Since(begin); took > time.Second || len(st.Members) != 3 || !warns(st, WarnSilent) {
			t.Errorf("the status took %v: %+v", took, st)
		}
	})
}

// TestSilenceOfAnother: that one node does not answer takes nothing from the answer
// about another one.
func TestSilenceOfAnother(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c, p := threeNodes()
		w := newWorld(t, inCluster(c, p))
		p.silent[3] = true
		for node, missing := range map[string]int{"1": 0, "n2": 0, "3": 1, "n3": 1} {
			var h Holders
			if w.do("GET", "/v1/holders?cluster=1&node="+node, "", &h); len(h.Missing) != missing {
				t.Errorf("node %s: %+v", node, h)
			}
		}
		// What has no name may be the one.
		p.members[2].Name = ""
		var h Holders
		if w.do("GET", "/v1/holders?cluster=1&node=n9", "", &h); len(h.Missing) != 1 {
			t.Errorf("%+v", h)
		}
	})
}

func TestWithoutPeers(t *testing.T) {
	c, _ := threeNodes()
	w := newWorld(t, inCluster(c, nil))
	var h Holders
	if w.do("GET", "/v1/holders?cluster=1", "", &h); len(h.Missing) != 1 || h.Missing[0].Error == "" {
		t.Errorf("%+v", h)
	}
	w = newWorld(t, nil)
	var e Error
	if status := w.do("GET", "/v1/holders?cluster=1", "", &e); status != http.StatusConflict || e.Code != CodeNoCluster {
		t.Errorf("status %d, %v", status, e)
	}
}

// TestLockThatMoves: a lock that goes from another node to this one between the
// two questions is not shown on both.
func TestLockThatMoves(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	p.held[2] = []locking.Holder{holder("web", "/a", locking.Exclusive)}
	w.locks.onLook = func(n int, l *fakeLocks) {
		if n == 1 { // the peers were asked before
			l.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
			p.held[2] = nil
		}
	}
	var h Holders
	w.do("GET", "/v1/holders?cluster=1", "", &h)
	if !slices.Equal(vms(h.Holders), []string{"1web"}) {
		t.Errorf("holders %v", vms(h.Holders))
	}
	// What two nodes claim all the time is not hidden, and asked for a few times only.
	p.held[2], p.asked = []locking.Holder{holder("web", "/a", locking.Exclusive)}, nil
	w.do("GET", "/v1/holders?cluster=1", "", &h)
	if !slices.Equal(vms(h.Holders), []string{"1web", "2web"}) || len(p.asked) != maxAsks || len(h.Missing) != 0 {
		t.Errorf("holders %v, asked %v, missing %v", vms(h.Holders), p.asked, h.Missing)
	}
}

// TestCannotSettle: what two nodes claim, and cannot be asked about again, is shown
// once, and said to be incomplete. A node that has never answered changes nothing.
func TestCannotSettle(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		c, p := threeNodes()
		w := newWorld(t, inCluster(c, p))
		w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
		p.held[2] = w.locks.held
		p.onAsk = func(p *fakePeers) { p.silent[2] = len(p.asked) > 0 }
		for _, target := range []string{"/v1/holders?cluster=1", "/v1/who?path=/a", "/v1/who?path=/a&lockspace="} {
			p.asked = nil
			var h Holders
			w.do("GET", target, "", &h)
			if !slices.Equal(vms(h.Holders), []string{"1web"}) || len(h.Missing) != 1 || h.Missing[0].NodeID != 2 || h.Missing[0].Error == "" {
				t.Errorf("%s: %+v", target, h)
			}
		}
		// Of two who are both silent the second time, the one to whom it was granted last. If who had
		// it is silent, and nobody else says that he has it, he is shown.
		w.locks.held = nil
		first, last := holder("web", "/a", locking.Exclusive), holder("web", "/a", locking.Exclusive)
		last.Since = first.Since.Add(time.Second)
		alone := holder("db", "/b", locking.Exclusive)
		for _, later := range []uint32{2, 3} {
			p.held, p.asked = map[uint32][]locking.Holder{2: {first, alone}, 3: {first}}, nil
			p.held[later][0] = last
			p.onAsk = func(p *fakePeers) { p.silent[2], p.silent[3] = len(p.asked) > 0, len(p.asked) > 0 }
			var h Holders
			w.do("GET", "/v1/holders?cluster=1", "", &h)
			if want := []string{"2db", fmt.Sprint(later, "web")}; !slices.Equal(vms(h.Holders), want) || len(h.Missing) != 2 {
				t.Errorf("it was granted to node %d last: %+v", later, h)
			}
		}
		w.locks.held = []locking.Holder{holder("web", "/a", locking.Exclusive)}
		p.held = map[uint32][]locking.Holder{2: w.locks.held}
		// Node 3 is silent all the time, and the lock has left node 2 meanwhile.
		p.silent, p.asked = map[uint32]bool{3: true}, nil
		p.onAsk = func(p *fakePeers) {
			if len(p.asked) > 0 {
				p.held[2] = nil
			}
		}
		begin := time.Now()
		var h Holders
		w.do("GET", "/v1/holders?cluster=1", "", &h)
		if took := time.Since(begin); took > time.Second || !slices.Equal(vms(h.Holders), []string{"1web"}) || len(h.Missing) != 1 || h.Missing[0].NodeID != 3 {
			t.Errorf("after %v: %+v", took, h)
		}
	})
}

// TestManyMove: those that are too many to be asked about again are shown once, and said
// to be incomplete.
func TestManyMove(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	for i := range maxAsks*maxMoving + 5 {
		w.locks.held = append(w.locks.held, holder("web", fmt.Sprint("/", i), locking.Exclusive))
	}
	p.held[2] = w.locks.held
	p.onAsk = func(p *fakePeers) {
		if len(p.asked) > 0 {
			p.held[2] = nil
		}
	}
	var h Holders
	w.do("GET", "/v1/holders?cluster=1", "", &h)
	if len(h.Holders) != len(w.locks.held) || len(h.Missing) != 1 || !strings.Contains(h.Missing[0].Error, "5 resources moved") || len(p.asked) != maxAsks {
		t.Errorf("%d holders, asked %d times, missing %v", len(h.Holders), len(p.asked), h.Missing)
	}
}

// TestPartOfAnAnswer: what a node has said is shown although it is not all.
func TestPartOfAnAnswer(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	p.held[2], p.partly = []locking.Holder{holder("db", "/b", locking.Exclusive)}, map[uint32]bool{2: true}
	for _, target := range []string{"/v1/holders?cluster=1", "/v1/who?path=/b"} {
		var h Holders
		w.do("GET", target, "", &h)
		if !slices.Equal(vms(h.Holders), []string{"2db"}) || len(h.Missing) != 1 || h.Missing[0].NodeID != 2 {
			t.Errorf("%s: %+v", target, h)
		}
	}
}

// TestWhoAsksOnce: one question for everything, however many names a disk has, or
// one for the resources if the lockspace is known.
func TestWhoAsksOnce(t *testing.T) {
	c, p := threeNodes()
	w := newWorld(t, inCluster(c, p))
	w.do("GET", "/v1/who?path=/a&path=/b&path=/c", "", nil)
	if p.listed != 1 || len(p.asked) != 0 {
		t.Errorf("asked for everything %d times, and for %v", p.listed, p.asked)
	}
	w.do("GET", "/v1/who?path=/a&path=/b&lockspace=/x", "", nil)
	if p.listed != 1 || len(p.asked) != 1 || len(p.asked[0]) != 4 || p.asked[0][0] != (Sought{Ref: locking.Ref{Lockspace: "/x", Name: "/a"}}) {
		t.Errorf("asked for everything %d times, and for %v", p.listed, p.asked)
	}
}

func warns(st Status, code string) bool {
	return slices.ContainsFunc(st.Warnings, func(w Warning) bool { return w.Code == code && w.Message != "" })
}

func TestWarnings(t *testing.T) {
	for code, do := range map[string]func(*fakeCluster, *fakePeers, *world){
		WarnUnprotected:   func(c *fakeCluster, _ *fakePeers, _ *world) { c.c.Fencing = No },
		WarnNoQuorum:      func(c *fakeCluster, _ *fakePeers, _ *world) { c.c.Quorate = No },
		WarnLockspace:     func(c *fakeCluster, _ *fakePeers, _ *world) { c.c.Lockspace.State = LockspaceStopped },
		WarnReboot:        func(c *fakeCluster, _ *fakePeers, _ *world) { c.c.Lockspace.State = LockspaceDead },
		WarnNoAnswer:      func(c *fakeCluster, _ *fakePeers, _ *world) { c.c.Error = "dlm_controld does not answer" },
		WarnDraining:      func(_ *fakeCluster, _ *fakePeers, w *world) { w.drain.now = &Drained{} },
		WarnVersions:      func(_ *fakeCluster, p *fakePeers, _ *world) { p.members[1].Version = "2" },
		WarnConfiguration: func(_ *fakeCluster, p *fakePeers, _ *world) { p.members[1].ConfigDigest = "other" },
		WarnSilent:        func(_ *fakeCluster, p *fakePeers, _ *world) { p.members[1].Silent = true },
		WarnNoDaemon: func(_ *fakeCluster, p *fakePeers, _ *world) {
			p.members, p.absent = p.members[:2], map[uint32]bool{2: true, 3: true}
		},
	} {
		c, p := threeNodes()
		w := newWorld(t, inCluster(c, p))
		var st Status
		if w.do("GET", "/v1/status", "", &st); len(st.Warnings) != 0 || st.NodeID != 1 || st.Node != "n1" || len(st.Members) != 3 {
			t.Fatalf("healthy: %+v", st)
		}
		do(c, p, w)
		st = Status{}
		if w.do("GET", "/v1/status", "", &st); len(st.Warnings) != 1 || !warns(st, code) {
			t.Errorf("%s: %+v", code, st.Warnings)
		}
	}
	// The number of this host is known when dlm_controld says nothing any more.
	c, p := threeNodes()
	p.members = nil
	w := newWorld(t, inCluster(c, p))
	var st Status
	w.do("GET", "/v1/status", "", &st)
	c.c = Cluster{Error: "no answer"}
	if w.do("GET", "/v1/status", "", &st); st.NodeID != 1 {
		t.Errorf("silent: node %d", st.NodeID)
	}
	c, p = threeNodes()
	c.c.Fencing, c.c.Guarded = No, true
	w = newWorld(t, inCluster(c, p))
	st = Status{}
	if w.do("GET", "/v1/status", "", &st); len(st.Warnings) != 0 {
		t.Errorf("guarded: %+v", st.Warnings)
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"*", "", true}, {"*", "/a/b", true}, {"/a/*", "/a/b/c", true}, {"/a/?", "/a/b", true}, {"/a/?", "/a/bc", false},
		{"*.img", "/a.img", true}, {"*.img", "/a.img2", false}, {"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"a", "ab", false}, {"ab", "a", false},
		{"**", "x", true}, {"a**b", "ab", true},
	} {
		if got := glob(tc.pattern, tc.text); got != tc.want {
			t.Errorf("glob(%q, %q) is %v", tc.pattern, tc.text, got)
		}
	}
}
