package controld

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// captured are answers of dlm_controld 4.2.0 of Debian 12, by question, about a lockspace "tls": on a healthy cluster of
// three nodes; after the dlm_controld of node 3 was killed, with a fence agent that does not end; and after node 2 was
// cut off as well. "merge" is about a lockspace "vmlockd", after three nodes without fencing were all separated and met
// again.
func captured(t testing.TB, name string) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string][]byte{}
	for line := range strings.Lines(string(data)) {
		what, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		if m[what], err = hex.DecodeString(digits); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestCapturedHealthy(t *testing.T) {
	m := captured(t, "healthy")
	st, err := readStatus(bytes.NewReader(m["status"]))
	if err != nil || !st.Quorate || st.NodeID != 1 || st.Members != 3 || len(st.Nodes) != 3 || st.DaemonRing != 13 || st.ClusterRing != 13 {
		t.Errorf("status %+v, %v", st, err)
	}
	for i, n := range st.Nodes {
		if n.NodeID != i+1 || !n.Member || n.Lost() || n.NeedFencing || !n.Failed.IsZero() {
			t.Errorf("node %+v", n)
		}
	}
	c, err := readConfig(bytes.NewReader(m["config"]))
	if err != nil || !c.EnableFencing || !c.EnableQuorumLockspace || c.PostJoinDelay != 3*time.Second || c.All["protocol"] != "detect" {
		t.Errorf("config %+v, %v", c, err)
	}
	l, err := readLockspace(bytes.NewReader(m["info"]))
	if err != nil || l.Name != "tls" || l.Flags != 0 || l.Changing() || l.Started.Members != 3 {
		t.Errorf("lockspace %+v, %v", l, err)
	}
	ls, err := readRecords(bytes.NewReader(m["lockspaces"]), 5, 140, maxSpaces, lockspaceOf)
	if err != nil || len(ls) != 1 || ls[0] != l {
		t.Errorf("lockspaces %+v, %v", ls, err)
	}
	if _, err := readLockspace(bytes.NewReader(m["info-none"])); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no such lockspace: %v", err)
	}
	nodes, err := readRecords(bytes.NewReader(m["nodes"]), 6, 40, maxNodes, nodeOf)
	if err != nil || len(nodes) != 3 || nodes[0].Flags != Member|Started {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
	if _, err := readRecords(bytes.NewReader(m["nodes1"]), 6, 40, maxNodes, nodeOf); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("too many nodes: %v", err)
	}
}

func TestCapturedFencing(t *testing.T) {
	m := captured(t, "fencing")
	st, err := readStatus(bytes.NewReader(m["status"]))
	if err != nil || !st.Quorate || st.FencePID == 0 || len(st.Nodes) != 3 {
		t.Fatalf("status %+v, %v", st, err)
	}
	n := st.Nodes[2]
	if n.NodeID != 3 || n.Member || !n.Lost() || !n.NeedFencing || n.LeftReason != "procdown" || n.FenceActor != 1 || n.FencePID != st.FencePID || n.Failed.Unix() != 1795415359 {
		t.Errorf("node %+v", n)
	}
	l, err := readLockspace(bytes.NewReader(m["info"]))
	if err != nil || l.Flags != KernelStopped || !l.Changing() || l.Next.Wait != WaitFencing || l.Next.Failed != 1 {
		t.Errorf("lockspace %+v, %v", l, err)
	}
	nodes, err := readRecords(bytes.NewReader(m["nodes"]), 6, 40, maxNodes, nodeOf)
	found := false
	for _, n := range nodes {
		found = found || n.NodeID == 3 && n.Flags&NeedFencing != 0 && n.Flags&Member == 0 && n.Failed.Unix() == 1795415359
	}
	if err != nil || !found {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
}

func TestCapturedQuorum(t *testing.T) {
	m := captured(t, "quorum")
	st, err := readStatus(bytes.NewReader(m["status"]))
	if err != nil || st.Quorate || st.Members != 1 || !st.Nodes[1].Lost() || !st.Nodes[2].Lost() {
		t.Fatalf("status %+v, %v", st, err)
	}
	l, err := readLockspace(bytes.NewReader(m["info"]))
	if err != nil || l.Next.Wait != WaitQuorum {
		t.Errorf("lockspace %+v, %v", l, err)
	}
}

func TestCapturedMerge(t *testing.T) {
	m := captured(t, "merge")
	st, err := readStatus(bytes.NewReader(m["status"]))
	if err != nil || !st.Quorate || !st.MergeWait || st.Members != 3 {
		t.Fatalf("status %+v, %v", st, err)
	}
	l, err := readLockspace(bytes.NewReader(m["info"]))
	if err != nil || l.Flags != KernelStopped || !l.Next.WaitMessages || l.Next.Missing != 2 || l.Next.Wait != WaitNone {
		t.Errorf("lockspace %+v, %v", l, err)
	}
}

// FuzzAnswers feeds every decoder; none may crash or take memory without bound.
func FuzzAnswers(f *testing.F) {
	for _, name := range []string{"healthy", "fencing", "quorum", "merge"} {
		for _, b := range captured(f, name) {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		testenv.Bounded(t, 100, len(b), func() {
			_, _ = readStatus(bytes.NewReader(b))
			_, _ = readConfig(bytes.NewReader(b))
			_, _ = readLockspace(bytes.NewReader(b))
			_, _ = readRecords(bytes.NewReader(b), 5, 140, maxSpaces, lockspaceOf)
			_, _ = readRecords(bytes.NewReader(b), 6, 40, maxNodes, nodeOf)
		})
	})
}
