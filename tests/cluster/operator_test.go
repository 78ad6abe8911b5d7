package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
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
	// Of a shared lock all holders are named, also on a host that has one of them.
	for node, where := range map[int]string{2: "on host node1 (node 1)", 1: "on this host"} {
		s.waitFor(t, fmt.Sprintf("a refusal on node %d that names both virtual machines", node), func() bool {
			said = s.createRefused(t, node, vm("other", lab.Disk{Path: shared.Path}), shared.Path)
			return strings.Contains(said, "virtual machine list1 (") && strings.Contains(said, where) &&
				strings.Contains(said, "virtual machine list3 (") && strings.Contains(said, "on host node3 (node 3)")
		}, func() string { return said })
	}
	who, err := s.Node(2).MustSucceed(s.ctx, "vmlockctl", "who", path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(who.Stdout, "list1") {
		t.Errorf("who: %v", who)
	}
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
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.Node(1).DialUnix(ctx, "/run/vmlockd/control.sock")
	}}}
	defer client.CloseIdleConnections()
	var lists []listing
	for seen, whole := 0, 0; whole < snapshots || seen == 0; {
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
		seen += l.ofVM("load")
		if len(l.Missing) == 0 {
			whole++
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
	seen, whole := 0, 0
	for n, l := range lists {
		exclusive := map[string]int{}
		for _, h := range l.Holders {
			if h.VM == "load" {
				seen++
				if h.Mode == "exclusive" {
					exclusive[h.Resource]++
				}
			}
		}
		for disk, holders := range exclusive {
			if holders > 1 {
				t.Errorf("snapshot %d has %d exclusive holders of %s: %+v", n, holders, disk, l.Holders)
			}
		}
		if len(l.Missing) == 0 {
			whole++
		}
	}
	s.step(t, "%d snapshots, %d of them complete, with %d holders in all; %d grants meanwhile", len(lists), whole, seen, held)
	if whole < snapshots || seen == 0 || held < len(disks) {
		t.Errorf("%d complete snapshots, %d holders, %d grants: that shows nothing", whole, seen, held)
	}
}

// atMost is more than what a list may take when a host does not answer: a second,
// and what a busy node needs to start the program.
const atMost = 4 * time.Second

// listWithoutPeer: a daemon that is stopped or killed is named as missing, and
// keeps nobody waiting.
func listWithoutPeer(t *testing.T, s *suite) {
	disk := lab.Disk{Path: s.disk(t, "peer.img", lab.IdleGuest())}
	s.create(t, 1, vm("peer1", disk))
	daemon := s.Node(3).Service(lab.ServiceLock)
	missing := func(what string) {
		t.Helper()
		s.waitFor(t, what, func() bool {
			l, res := s.ls(t, 2)
			s.step(t, "%s: answered after %v, missing %+v", what, res.Took.Round(time.Millisecond), l.Missing)
			if res.Took > atMost {
				t.Errorf("%s: the list took %v", what, res.Took)
			}
			return res.Status == statusIncomplete && l.missing(3) && !l.missing(1) && l.ofVM("peer") == 1
		}, func() string { return "" })
	}
	if err := daemon.Signal(s.ctx, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	missing("node 3's daemon is stopped")
	if err := daemon.Signal(s.ctx, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	complete := func(what string) {
		t.Helper()
		s.waitFor(t, what, func() bool { l, res := s.ls(t, 2); return res.Status == 0 && l.ofVM("peer") == 1 }, func() string { return "" })
	}
	complete("node 3's daemon goes on")
	if err := daemon.Kill(s.ctx); err != nil {
		t.Fatal(err)
	}
	missing("node 3's daemon is killed")
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	complete("node 3's daemon is started")
}
