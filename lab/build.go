package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BuildProgram compiles the main package pkg to the file path, without cgo, as programs are installed. With test it compiles the package's tests instead.
func BuildProgram(path, pkg string, test bool) error {
	args := []string{"build", "-ldflags", "-s -w", "-o", path, pkg} // to link what only a debugger reads takes as long as the rest
	if test {
		args = []string{"test", "-c", "-o", path, pkg}
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// Build is BuildProgram for a test; the program goes away with it.
func Build(t testing.TB, pkg string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), filepath.Base(pkg))
	if err := BuildProgram(path, pkg, false); err != nil {
		t.Fatal(err)
	}
	return path
}

// Main is the TestMain of a package whose tests boot labs: it builds programs, by package, once for all of them, and says where
// each is. Without VMLOCKD_LAB=1, when the tests are skipped, it builds nothing. It does not return.
func Main(m *testing.M, programs map[*string]string) {
	if os.Getenv(Env) != "1" {
		os.Exit(m.Run())
	}
	MainWith(m, programs)
}

// MainWith is Main for tests that need no lab: it builds the programs in any case.
func MainWith(m *testing.M, programs map[*string]string) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "vmlockd-tests")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		for path, pkg := range programs {
			*path = filepath.Join(dir, filepath.Base(pkg))
			if err := BuildProgram(*path, pkg, false); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return m.Run()
	}())
}
