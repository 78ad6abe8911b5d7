package prerequisites_test

import (
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// binaries are built once: to link one takes seconds.
var binaries struct{ vmlockd, vmlockctl string }

func TestMain(m *testing.M) {
	lab.MainWith(m, map[*string]string{&binaries.vmlockd: vmlockd, &binaries.vmlockctl: vmlockctl})
}

// program is the path of a built program.
func program(pkg string) string {
	return map[string]string{vmlockd: binaries.vmlockd, vmlockctl: binaries.vmlockctl}[pkg]
}
