package cluster_test

import (
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// TestStockVirtlockdAllowsDoubleStart is why vmlockd exists: the same test bed,
// where record locks do not cross from host to host, with the lock daemon that
// libvirt ships. If this fails, TestLibvirt proves nothing any more.
func TestStockVirtlockdAllowsDoubleStart(t *testing.T) {
	s := start(t, lab.Config{Nodes: 2, LockDaemon: lab.Virtlockd, NoCluster: true})
	path := s.disk(t, "double.img", lab.IdleGuest())
	s.create(t, 1, vm("first", lab.Disk{Path: path}))
	// On one host virtlockd does its job, so it is really asked.
	s.createRefused(t, 1, vm("third", lab.Disk{Path: path}), path)
	s.create(t, 2, vm("second", lab.Disk{Path: path}))
	s.state(t, 1, "first", "running")
	s.state(t, 2, "second", "running")
}
