package conformance_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest/conformance"
)

// realEnv, set to 1, says that this is a node of a cluster on which TestHost may make lockspaces.
const realEnv = "VMLOCKD_DLM_REAL"

// TestHost is the suite on the kernel of this machine.
func TestHost(t *testing.T) {
	if os.Getenv(realEnv) != "1" {
		_, err := os.Stat("/sys/class/misc/dlm-control")
		t.Skipf("%s is not 1, so this machine's kernel is left alone; its DLM: %v", realEnv, err)
	}
	// What dlm_controld writes to stop and start a lockspace when members come and go. With this node the only member
	// nobody else has to be told.
	control := func(value string) func(testing.TB, string) {
		return func(t testing.TB, lockspace string) {
			path := filepath.Join("/sys/kernel/dlm", lockspace, "control")
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	conformance.Run(t, conformance.Site{
		Kernels: []dlm.Kernel{dlm.Host()},
		Suspend: control("0"),
		Resume:  control("1"),
	})
}
