package conformance_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/dlm/dlmtest/conformance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSimulation(t *testing.T) {
	for _, nodes := range []int{1, 2, 3} {
		c := dlmtest.NewCluster(nodes)
		site := conformance.Site{
			Storm:    500 * time.Millisecond,
			Suspend:  func(_ testing.TB, lockspace string) { c.Suspend(lockspace) },
			Resume:   func(_ testing.TB, lockspace string) { c.Resume(lockspace) },
			PowerOff: func(testing.TB) { c.Node(nodes).PowerOff(); c.Recover() },
		}
		for i := range nodes {
			site.Kernels = append(site.Kernels, dlm.Kernel(c.Node(i+1)))
		}
		t.Run("", func(t *testing.T) { conformance.Run(t, site) })
	}
}
