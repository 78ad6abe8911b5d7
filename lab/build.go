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
	args := []string{"build", "-o", path, pkg}
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
