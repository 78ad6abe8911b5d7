package cluster_test

import (
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// TestStockVirtlockdAllowsDoubleStart is why vmlockd exists: the same test bed and
// the same double start, where record locks do not cross from host to host, with
// the lock daemon that libvirt ships. If this fails, TestLibvirt proves nothing any
// more.
func TestStockVirtlockdAllowsDoubleStart(t *testing.T) {
	s := start(t, lab.Config{Nodes: 2, LockDaemon: lab.Virtlockd, NoCluster: true})
	_, second := doubleStart(t, s)
	if !second.OK() {
		t.Fatalf("virtlockd does not allow the second start: %v", second)
	}
	s.state(t, 2, "second", "running")
}
