package prerequisites_test

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// built has the programs, made by the first test that needs one: to link one takes seconds.
var built struct {
	dir  string
	once sync.Once
	err  error
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vmlockd-prerequisites")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built.dir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// program returns the path of a built program.
func program(t *testing.T, pkg string) string {
	t.Helper()
	built.once.Do(func() {
		for _, p := range []string{vmlockd, vmlockctl} {
			if built.err = lab.BuildProgram(filepath.Join(built.dir, path.Base(p)), p, false); built.err != nil {
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, path.Base(pkg))
}
