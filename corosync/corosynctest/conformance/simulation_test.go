package conformance_test

import (
	"net"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
	"github.com/vmlockd/vmlockd/corosync/corosynctest/conformance"
	"github.com/vmlockd/vmlockd/corosync/corosynctest/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func simulated(nodes int) conformance.Site {
	c := corosynctest.NewCluster(nodes)
	site := conformance.Site{
		Nodes:         nodes,
		Start:         func(_ testing.TB, node int) conformance.Process { return c.Node(node).NewProcess() },
		StopCorosync:  func(_ testing.TB, node int) { c.Node(node).StopCorosync() },
		StartCorosync: func(_ testing.TB, node int) { c.Node(node).StartCorosync() },
		Suspend:       func(_ testing.TB, node int) { c.Node(node).Suspend() },
		Resume:        func(_ testing.TB, node int) { c.Node(node).Resume() },
		PowerOff:      func(testing.TB) { c.Node(nodes).StopCorosync() },
	}
	if nodes > 1 {
		site.Cut = func(testing.TB) {
			var rest []int
			for i := 1; i < nodes; i++ {
				rest = append(rest, i)
			}
			c.Partition(rest, []int{nodes})
		}
		site.Heal = func(testing.TB) { c.Heal() }
	}
	return site
}

func TestSimulation(t *testing.T) {
	t.Run("One", func(t *testing.T) { conformance.Run(t, simulated(1)) })
	t.Run("Three", func(t *testing.T) { conformance.Run(t, simulated(3)) })
}

// TestRemoteSimulation shows that package remote changes nothing.
func TestRemoteSimulation(t *testing.T) {
	site := simulated(3)
	start := site.Start
	site.Start = func(t testing.TB, node int) conformance.Process {
		p := start(t, node)
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- remote.Serve(l, p) }()
		t.Cleanup(func() {
			l.Close()
			<-done
		})
		return process{remote.System(func() (net.Conn, error) { return net.Dial("unix", path) }), p.Kill}
	}
	conformance.Run(t, site)
}

// process is a System with a way to kill what is behind it.
type process struct {
	corosync.System
	kill func()
}

func (p process) Kill() { p.kill() }
