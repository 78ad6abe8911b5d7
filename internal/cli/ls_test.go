package cli_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// serveFakeCluster serves a scene until the test ends.
func serveFakeCluster(t *testing.T, scene string, events *control.Events) (f *fakeCluster, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ctl") // short: the paths of sockets may not be long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f = newFakeCluster()
	scenes[scene](f)
	end, err := f.serve(dir+"/sock", events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return f, dir + "/sock"
}

// filter is one filter of ls, and what of the fixture it picks.
type filter struct {
	args  []string
	picks func(node uint32, h locking.Holder) bool
}

// filters are for each kind some that pick something, some that pick nothing, and none.
var filters = struct{ vm, path, mode, node []filter }{
	vm: []filter{
		{},
		{[]string{"--vm", "web"}, func(_ uint32, h locking.Holder) bool { return h.Owner.Name == "web" }},
		{[]string{"--vm", locking.FormatUUID(heldBy("", 801, 0, "").Owner.UUID)}, func(_ uint32, h locking.Holder) bool { return h.Owner.Name == "db2" }},
		{[]string{"--vm", "we"}, func(uint32, locking.Holder) bool { return false }}, // not a part of a name
	},
	path: []filter{
		{},
		{[]string{"--path", "/srv/vm/*"}, func(_ uint32, h locking.Holder) bool { return strings.HasPrefix(h.Ref.Name, "/srv/vm/") }},
		{[]string{"--path", "*/???.img"}, func(_ uint32, h locking.Holder) bool { return strings.HasSuffix(h.Ref.Name, "/web.img") }},
		{[]string{"--path", "/srv/vm"}, func(uint32, locking.Holder) bool { return false }}, // a pattern has all of it
	},
	mode: []filter{
		{},
		{[]string{"--mode", "exclusive"}, func(_ uint32, h locking.Holder) bool { return h.Mode == locking.Exclusive }},
		{[]string{"--mode", "shared"}, func(_ uint32, h locking.Holder) bool { return h.Mode == locking.Shared }},
	},
	node: []filter{
		{},
		{[]string{"--node", "1"}, func(node uint32, _ locking.Holder) bool { return node == 1 }},
		{[]string{"--node", "kvm2"}, func(node uint32, _ locking.Holder) bool { return node == 2 }},
		{[]string{"--node", "kvm3"}, func(node uint32, _ locking.Holder) bool { return node == 3 }},
	},
}

// each calls f with the arguments of every combination of filters, and what picks all
// that it has to show.
func each(kinds [][]filter, f func(args []string, picks func(uint32, locking.Holder) bool)) {
	if len(kinds) == 0 {
		f(nil, func(uint32, locking.Holder) bool { return true })
		return
	}
	for _, one := range kinds[0] {
		each(kinds[1:], func(args []string, picks func(uint32, locking.Holder) bool) {
			f(append(slices.Clone(one.args), args...), func(node uint32, h locking.Holder) bool {
				return (one.picks == nil || one.picks(node, h)) && picks(node, h)
			})
		})
	}
}

func row(node uint32, vm, mode, path string) string {
	return fmt.Sprint(node, " ", vm, " ", mode, " ", path)
}

// TestLsFilters: every combination of filters, here and in a cluster of which two hosts
// do not answer, shows what it has to and names who is missing.
func TestLsFilters(t *testing.T) {
	f, socket := serveFakeCluster(t, "calm", &control.Events{})
	asked, found := 0, 0
	for _, cluster := range []bool{false, true} {
		each([][]filter{filters.vm, filters.path, filters.mode, filters.node}, func(args []string, picks func(uint32, locking.Holder) bool) {
			args = append([]string{"ls", "--json"}, args...)
			if cluster {
				args = append(args, "--cluster")
			}
			// Who names a node asks the cluster, too.
			node := slices.Index(args, "--node")
			want, missing := []string{}, []string{}
			for id := uint32(1); id <= 4; id++ {
				list := f.others[id]
				if id == 1 {
					list = f.held
				}
				for _, h := range list {
					if (id == 1 || cluster || node > 0) && picks(id, h) {
						want = append(want, row(id, h.Owner.Name, h.Mode.String(), h.Ref.Name))
					}
				}
				if name := fmt.Sprint("kvm", id); f.silent[id] != "" && (node > 0 && args[node+1] == name || node < 0 && cluster) {
					missing = append(missing, name)
				}
			}
			wantStatus := 0
			if len(missing) > 0 {
				wantStatus = 5
			}
			status, out, errs := ctl(socket, args...)
			var h control.Holders
			if err := json.Unmarshal([]byte(out), &h); err != nil || status != wantStatus || errs != "" {
				t.Fatalf("%q: status %d, want %d, %v: %s%s", args, status, wantStatus, err, out, errs)
			}
			got, silent := []string{}, []string{}
			for _, o := range h.Holders {
				got = append(got, row(o.NodeID, o.VM, o.Mode, o.Resource))
			}
			for _, m := range h.Missing {
				silent = append(silent, m.Node)
				if m.Error != f.silent[m.NodeID] {
					t.Errorf("%q: of %s it says %q", args, m.Node, m.Error)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) || !slices.Equal(silent, missing) {
				t.Errorf("%q:\n got %q, missing %q\nwant %q, missing %q", args, got, silent, want, missing)
			}
			asked, found = asked+1, found+len(want)
		})
	}
	if asked != 2*4*4*3*4 || found < 50 {
		t.Errorf("only %d questions with %d rows: that tests little", asked, found)
	}
}

// TestLsRefused: who was refused lately, and who waits, with every combination of the
// filters that there are for it.
func TestLsRefused(t *testing.T) {
	events := &control.Events{}
	f, socket := serveFakeCluster(t, "calm", events)
	const busy = "it is locked by virtual machine web (pid 803) on kvm2"
	f.waiting = []locking.Waiter{}
	list := append(slices.Clone(f.held), f.others[2]...)
	for _, h := range list {
		events.Observe(locking.Event{Kind: locking.Granted, Ref: h.Ref, Owner: h.Owner, Mode: h.Mode}) // is none
		events.Observe(locking.Event{Kind: locking.Refused, Ref: h.Ref, Owner: h.Owner, Mode: h.Mode, Err: errors.New(busy), Took: time.Second})
		f.waiting = append(f.waiting, locking.Waiter{Ref: h.Ref, Owner: h.Owner, Mode: h.Mode, Since: at})
	}
	each([][]filter{filters.vm, filters.path, filters.mode}, func(args []string, picks func(uint32, locking.Holder) bool) {
		want := []string{}
		for _, h := range list {
			if picks(1, h) {
				want = append(want, row(1, h.Owner.Name, h.Mode.String(), h.Ref.Name))
			}
		}
		args = append([]string{"ls", "--refused"}, args...)
		status, out, errs := ctl(socket, append(args, "--json")...)
		var r control.Refused
		if err := json.Unmarshal([]byte(out), &r); err != nil || status != 0 || errs != "" {
			t.Fatalf("%q: status %d, %v: %s%s", args, status, err, out, errs)
		}
		refused, waiting := []string{}, []string{}
		for _, e := range r.Refused {
			refused = append(refused, row(1, e.VM, e.Mode, e.Resource))
			if e.Reason != busy || e.Took != 1 {
				t.Errorf("%q: %+v", args, e)
			}
		}
		for _, w := range r.Waiting {
			waiting = append(waiting, row(1, w.VM, w.Mode, w.Resource))
		}
		if !slices.Equal(refused, want) || !slices.Equal(waiting, want) {
			t.Errorf("%q:\n got %q, waiting %q\nwant %q", args, refused, waiting, want)
		}
		// The table has the same.
		_, out, _ = ctl(socket, args...)
		nobody := map[bool]string{true: "Nobody like that was refused lately.\n", false: "Nobody was refused lately.\n"}[len(args) > 2]
		switch {
		case len(want) == 0 && out != nobody:
			t.Errorf("%q: %s", args, out)
		case len(want) > 0 && (strings.Count(out, busy) != len(want) || strings.Count(out, at.Format(time.RFC3339)) != len(want) ||
			strings.Count(out, "\n") != 2*len(want)+3 || !strings.Contains(out, "\nWAITING SINCE ")):
			t.Errorf("%q:\n%s", args, out)
		}
	})
	// Only some wait.
	f.waiting = f.waiting[:1]
	status, out, _ := ctl(socket, "ls", "--refused", "--vm", "web", "--mode", "exclusive")
	if status != 0 || strings.Count(out, "/srv/vm/web.img") != 2 || strings.Count(out, "/srv/old/web.img") != 1 {
		t.Errorf("status %d:\n%s", status, out)
	}
	for _, more := range []string{"--cluster", "--node=1"} {
		if status, out, errs := ctl(socket, "ls", "--refused", more); status != 2 || out != "" || !strings.Contains(errs, "leave out --cluster and --node") {
			t.Errorf("%s: status %d, %s%s", more, status, out, errs)
		}
	}
}
