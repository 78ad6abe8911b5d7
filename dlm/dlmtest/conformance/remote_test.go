package conformance_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/dlm/dlmtest/conformance"
	"github.com/vmlockd/vmlockd/dlm/dlmtest/remote"
)

// TestRemoteSimulation shows that package remote changes nothing.
func TestRemoteSimulation(t *testing.T) {
	const nodes = 2
	c := dlmtest.NewCluster(nodes)
	site := conformance.Site{
		Storm:    500 * time.Millisecond,
		Suspend:  func(_ testing.TB, lockspace string) { c.Suspend(lockspace) },
		Resume:   func(_ testing.TB, lockspace string) { c.Resume(lockspace) },
		PowerOff: func(testing.TB) { c.Node(nodes).PowerOff(); c.Recover() },
	}
	for i := range nodes {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- remote.Serve(l, c.Node(i+1)) }()
		t.Cleanup(func() {
			l.Close()
			<-done
		})
		site.Kernels = append(site.Kernels, remote.Kernel(func() (net.Conn, error) { return net.Dial("unix", path) }))
	}
	conformance.Run(t, site)
}
