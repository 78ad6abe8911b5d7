package difftest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/lab"
)

// vmlockd is the built program; "" where the lab is not asked for.
var vmlockd string

func TestMain(m *testing.M) {
	holder.Main() // endHolder starts one where there is none any more
	if os.Getenv(lab.Env) != "1" || os.Getenv(puppetEnv) != "" {
		goleak.VerifyTestMain(m)
	}
	lab.Main(m, map[*string]string{&vmlockd: "github.com/vmlockd/vmlockd/cmd/vmlockd"})
}

// children starts n processes that do nothing until the test ends, to be the
// owners of locks.
func children(t testing.TB, n int) []int32 {
	t.Helper()
	var pids []int32
	for range n {
		cmd := exec.Command("cat")
		// cat waits for what never comes; when this process ends, it does too.
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		start(t, cmd)
		pids = append(pids, int32(cmd.Process.Pid))
	}
	return pids
}

// sameFiles fails unless both daemons left the same files.
func (p *players) sameFiles() {
	p.t.Helper()
	theirs, ours := tree(p.t, p.theirs.dir), tree(p.t, p.ours.dir)
	if diff := cmp.Diff(theirs, ours); diff != "" {
		p.t.Errorf("files (-virtlockd +vmlockd):\n%s", diff)
	}
}

func tree(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		list = append(list, strings.TrimPrefix(path, dir)+" "+info.Mode().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until what is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(ioTimeout)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not true after %v: %s", ioTimeout, what)
		}
	}
}
