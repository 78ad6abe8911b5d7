package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmlockd/vmlockd/internal/holder"
)

func TestMain(m *testing.M) {
	holder.Main() // tests start one, of this program
	deafOwner()
	dir, err := os.MkdirTemp("", "vmlockd-daemon")
	if err != nil {
		panic(err)
	}
	built.dir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// built is a vmlockd for all tests, for linking one takes seconds. Its journald is
// whatever the link named journal in dir leads to.
var built struct {
	dir  string
	once sync.Once
	err  error
}

// buildOnce returns the built program, and makes its journald the given one.
func buildOnce(t *testing.T, journal string) string {
	t.Helper()
	program, link := filepath.Join(built.dir, "vmlockd"), filepath.Join(built.dir, "journal")
	built.once.Do(func() {
		ldflags := "-s -w -X main.version=v1.2.3 -X github.com/coreos/go-systemd/v22/journal.journalSocket=" + link
		cmd := exec.Command("go", "build", "-ldflags", ldflags, "-o", program, "../../cmd/vmlockd")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is installed
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	_ = os.Remove(link) // of the test before
	if err := os.Symlink(journal, link); err != nil {
		t.Fatal(err)
	}
	return program
}
