package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// statusIncomplete is vmlockctl's exit status when not every host has answered.
const statusIncomplete = 5

// listing is what 'vmlockctl ls --json' prints (docs/control-api.md).
type listing struct {
	Holders []struct {
		NodeID   int    `json:"node_id"`
		Node     string `json:"node"`
		VM       string `json:"vm"`
		Mode     string `json:"mode"`
		Resource string `json:"resource"`
	} `json:"holders"`
	Missing []struct {
		NodeID int    `json:"node_id"`
		Error  string `json:"error"`
	} `json:"missing"`
}

func (l listing) missing(node int) bool {
	for _, m := range l.Missing {
		if m.NodeID == node {
			return true
		}
	}
	return false
}

// rows are all the locks, "vm web on node 1: exclusive /path".
func (l listing) rows() []string {
	list := []string{}
	for _, h := range l.Holders {
		list = append(list, fmt.Sprintf("vm %s on node %d: %s %s", h.VM, h.NodeID, h.Mode, h.Resource))
	}
	slices.Sort(list)
	return list
}

// ofVM are those of virtual machines whose name begins so.
func (l listing) ofVM(prefix string) int {
	n := 0
	for _, h := range l.Holders {
		if strings.HasPrefix(h.VM, prefix) {
			n++
		}
	}
	return n
}

// virsh is what libvirt on all nodes says of running virtual machines and their
// disks, "vm web on node 1: exclusive /path".
func (s *suite) virsh(t *testing.T) []string {
	t.Helper()
	list := []string{}
	for _, n := range s.Nodes() {
		names, err := n.MustSucceed(s.ctx, "virsh", "list", "--name")
		if err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(names.Stdout) {
			text, err := n.MustSucceed(s.ctx, "virsh", "dumpxml", name)
			if err != nil {
				t.Fatal(err)
			}
			var domain struct {
				Disks []struct {
					Source struct {
						File string `xml:"file,attr"`
						Dev  string `xml:"dev,attr"`
					} `xml:"source"`
					Shareable *struct{} `xml:"shareable"`
					ReadOnly  *struct{} `xml:"readonly"`
				} `xml:"devices>disk"`
			}
			if err := xml.Unmarshal([]byte(text.Stdout), &domain); err != nil {
				t.Fatalf("virsh dumpxml %s on node %d: %v", name, n.ID(), err)
			}
			for _, d := range domain.Disks {
				mode := "exclusive"
				if d.Shareable != nil {
					mode = "shared"
				}
				if path := d.Source.File + d.Source.Dev; path != "" && d.ReadOnly == nil {
					list = append(list, fmt.Sprintf("vm %s on node %d: %s %s", name, n.ID(), mode, path))
				}
			}
		}
	}
	slices.Sort(list)
	return list
}

// ls lists the cluster's locks as a node sees them.
func (s *suite) ls(t *testing.T, node int) (listing, lab.Result) {
	t.Helper()
	res, err := s.Node(node).Exec(s.ctx, "vmlockctl", "ls", "--cluster", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var l listing
	if res.Status != 0 && res.Status != statusIncomplete {
		t.Fatalf("vmlockctl on node %d: %v", node, res)
	}
	if err := json.Unmarshal([]byte(res.Stdout), &l); err != nil {
		t.Fatalf("vmlockctl on node %d: %v: %v", node, err, res)
	}
	return l, res
}

// listCluster: on every node the list is what virsh shows on all of them, and a
// refusal names virtual machine and host.
func listCluster(t *testing.T, s *suite) {
	shared := lab.Disk{Path: s.disk(t, "list-shared.img", lab.IdleGuest()), Access: lab.Shareable}
	want := []string{}
	for node := 1; node <= 3; node++ {
		own := lab.Disk{Path: s.disk(t, fmt.Sprintf("list-%d.img", node), lab.IdleGuest())}
		name := fmt.Sprintf("list%d", node)
		disks := []lab.Disk{own}
		want = append(want, fmt.Sprintf("vm %s on node %d: exclusive %s", name, node, own.Path))
		if node != 2 {
			disks = append(disks, shared)
			want = append(want, fmt.Sprintf("vm %s on node %d: shared %s", name, node, shared.Path))
		}
		s.create(t, node, vm(name, disks...))
	}
	slices.Sort(want)
	if got := s.virsh(t); !slices.Equal(got, want) {
		t.Fatalf("virsh shows %q, want %q", got, want)
	}
	for _, n := range s.Nodes() {
		var got []string
		// A host under load may miss the deadline of a list once.
		s.waitFor(t, fmt.Sprintf("all locks in the list of node %d", n.ID()), func() bool {
			l, res := s.ls(t, n.ID())
			got = l.rows()
			return res.Status == 0 && slices.Equal(got, want)
		}, func() string { return fmt.Sprintf("got %q, want %q", got, want) })
	}
	path := lab.SharedDir + "/list-1.img"
	said := ""
	s.waitFor(t, "a refusal that names the virtual machine", func() bool {
		said = s.createRefused(t, 2, vm("other", lab.Disk{Path: path}), path)
		return strings.Contains(said, "is locked by virtual machine list1 (uuid ") && strings.Contains(said, "on host node1 (node 1)")
	}, func() string { return said })
	s.unchanged(t, 2, path, said)
	// Of a shared lock all holders are named, also on a host that has one of them.
	for node, where := range map[int]string{2: "on host node1 (node 1)", 1: "on this host"} {
		s.waitFor(t, fmt.Sprintf("a refusal on node %d that names both virtual machines", node), func() bool {
			said = s.createRefused(t, node, vm("other", lab.Disk{Path: shared.Path}), shared.Path)
			return strings.Contains(said, "virtual machine list1 (") && strings.Contains(said, where) &&
				strings.Contains(said, "virtual machine list3 (") && strings.Contains(said, "on host node3 (node 3)")
		}, func() string { return said })
	}
	var who lab.Result
	s.waitFor(t, "all nodes to answer who", func() bool {
		var err error
		who, err = s.Node(2).Exec(s.ctx, "vmlockctl", "who", path)
		if err != nil || !who.OK() && who.Status != statusIncomplete {
			t.Fatalf("who: %v, %v", who, err)
		}
		return who.OK()
	}, func() string { return who.String() })
	if !strings.Contains(who.Stdout, "list1") {
		t.Errorf("who: %v", who)
	}
}

// unchanged requires that virsh said of a node's last refusal of a disk what the daemon did, behind libvirt's own prefix.
func (s *suite) unchanged(t *testing.T, node int, path, said string) {
	t.Helper()
	res, err := s.Node(node).MustSucceed(s.ctx, "vmlockctl", "ls", "--refused", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Refused []struct {
			Resource string `json:"resource"`
			Reason   string `json:"reason"`
		} `json:"refused"`
	}
	if err := json.Unmarshal([]byte(res.Stdout), &list); err != nil {
		t.Fatalf("%v: %v", err, res)
	}
	for _, r := range slices.Backward(list.Refused) {
		if r.Resource == path {
			if want := "error: resource busy: " + r.Reason + "\n"; !strings.Contains(said+"\n", want) {
				t.Errorf("virsh says %q, and the daemon %q", said, r.Reason)
			}
			return
		}
	}
	t.Errorf("node %d remembers no refusal of %s: %v", node, path, res)
}

// waitFor waits for a condition, and says at the end how it was when it did not
// come about.
func (s *suite) waitFor(t *testing.T, what string, ok func() bool, last func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := lab.WaitFor(ctx, what, func(context.Context) (bool, error) { return ok(), nil }); err != nil {
		t.Fatalf("%v; last: %s", err, last())
	}
}

// listDuringLoad: while disks change hands all the time, no list has two exclusive
// holders of one.
func listDuringLoad(t *testing.T, s *suite) {
	const snapshots = 100
	var disks []string
	for i := range 3 {
		disks = append(disks, s.disk(t, fmt.Sprintf("load-%d.img", i), []byte("x")))
	}
	stop := lab.SharedDir + "/load-stop"
	var load []*lab.Process
	for _, n := range s.Nodes() {
		p, err := n.Start(s.ctx, fmt.Sprintf("load-%d", n.ID()), "sh", append([]string{"-c",
			`while ! [ -e "$1" ]; do for disk in "$2" "$3" "$4"; do vmlockctl run --name load "$disk" -- true && echo held; done; done`, "sh", stop}, disks...)...)
		if err != nil {
			t.Fatal(err)
		}
		load = append(load, p)
	}
	// Not by vmlockctl, which takes a node longer to start than to ask.
	client := s.Node(1).HTTPClient("/run/vmlockd/control.sock")
	var lists []listing
	for so := (tally{}); so.whole < snapshots || so.busy < busySnapshots; so = tallyOf(lists) {
		var l listing
		resp, err := client.Get("http://vmlockd/v1/holders?cluster=true")
		if err == nil {
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("the daemon answers %s", resp.Status)
			}
			err = json.NewDecoder(resp.Body).Decode(&l)
			resp.Body.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if lists = append(lists, l); len(lists) == 5*snapshots {
			break
		}
	}
	s.disk(t, "load-stop", nil)
	held := 0
	for _, p := range load {
		if _, err := p.Wait(s.ctx); err != nil {
			t.Fatal(err)
		}
		log, err := p.Log(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		held += bytes.Count(log, []byte("held"))
	}
	got := tallyOf(lists)
	s.step(t, "%d snapshots, %d of them complete, %d of those with a holder; %d grants meanwhile", len(lists), got.whole, got.busy, held)
	for _, conflict := range got.conflicts {
		t.Error(conflict)
	}
	if got.whole < snapshots || got.busy < busySnapshots || held < len(disks) {
		t.Errorf("%d complete snapshots, %d with a holder, %d grants: that shows nothing", got.whole, got.busy, held)
	}
}

// busySnapshots is how many of those that are complete have to show a holder.
const busySnapshots = 10

// tally is what lists show of the virtual machines 'load'.
type tally struct {
	whole, busy int      // complete lists, and those of them with a holder
	conflicts   []string // disks with an exclusive holder and another one, also in lists that are not complete
}

func tallyOf(lists []listing) (sum tally) {
	for n, l := range lists {
		exclusive, all := map[string]int{}, map[string]int{}
		for _, h := range l.Holders {
			if h.VM == "load" {
				all[h.Resource]++
				if h.Mode == "exclusive" {
					exclusive[h.Resource]++
				}
			}
		}
		for disk := range exclusive {
			if all[disk] > 1 {
				sum.conflicts = append(sum.conflicts, fmt.Sprintf("snapshot %d has %d holders of %s, %d of them exclusive: %+v", n, all[disk], disk, exclusive[disk], l.Holders))
			}
		}
		if len(l.Missing) == 0 {
			sum.whole++
			if len(all) > 0 {
				sum.busy++
			}
		}
	}
	return sum
}

// It needs no lab: what listDuringLoad looks for it finds.
func TestTally(t *testing.T) {
	list := func(missing bool, text string) (l listing) {
		in := `{"holders":[` + text + `],"missing":[`
		if missing {
			in += `{"node_id":3}`
		}
		if err := json.Unmarshal([]byte(in+"]}"), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	const one, two, shared = `{"node_id":1,"vm":"load","mode":"exclusive","resource":"/a"}`, `{"node_id":2,"vm":"load","mode":"exclusive","resource":"/a"}`,
		`{"node_id":3,"vm":"load","mode":"shared","resource":"/a"}`
	other := strings.ReplaceAll(two, "/a", "/b")
	for _, c := range []struct {
		list                   listing
		whole, busy, conflicts int
	}{
		{list(false, ""), 1, 0, 0},
		{list(false, one), 1, 1, 0},
		{list(true, one), 0, 0, 0},
		{list(false, one+","+other), 1, 1, 0},
		{list(false, shared+","+shared), 1, 1, 0},
		{list(false, one+","+two), 1, 1, 1},
		{list(true, one+","+two), 0, 0, 1},
		{list(false, one+","+shared), 1, 1, 1},
		{list(false, strings.ReplaceAll(one, "load", "idle")), 1, 0, 0},
	} {
		if got := tallyOf([]listing{c.list}); got.whole != c.whole || got.busy != c.busy || len(got.conflicts) != c.conflicts {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
