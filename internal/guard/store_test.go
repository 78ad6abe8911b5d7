package guard

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/failpoint"
)

// saveEnv makes this program a child that notes something in the file which it names.
const saveEnv = "GUARD_SAVE"

// A process that is killed while it notes something leaves what was noted before, or
// what it was to note, and nobody takes a part of it for all.
func TestKilledWhileSaving(t *testing.T) {
	if path := os.Getenv(saveEnv); path != "" {
		// It does not come back, unless it was not killed.
		t.Fatalf("not killed: %v", File{Path: path, Boot: "b"}.Save(saved(2)))
	}
	for name, want := range map[string]int{"guard.save.before": 1, "guard.save.after": 2} {
		t.Run(name, func(t *testing.T) {
			f := File{Path: filepath.Join(t.TempDir(), "guard.json"), Boot: "b"}
			if err := f.Save(saved(1)); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileSaving$")
			cmd.Env = append(os.Environ(), saveEnv+"="+f.Path, failpoint.Variable+"="+name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed: %v\n%s", err, out)
			}
			s, err := f.Load()
			if err != nil || s == nil || len(s.Frozen) != want || s.At != time.Duration(want) {
				t.Fatalf("noted is %+v, %v; want that of %d", s, err, want)
			}
			// The next one goes on from there.
			if err := f.Save(saved(3)); err != nil {
				t.Fatal(err)
			}
			if s, err = f.Load(); err != nil || len(s.Frozen) != 3 {
				t.Fatalf("noted is %+v, %v; want that of 3", s, err)
			}
		})
	}
}

// saved has n processes that are stopped.
func saved(n int) Saved {
	s := Saved{At: time.Duration(n)}
	for pid := range n {
		s.Frozen = append(s.Frozen, Frozen{Owner: Owner{PID: int32(pid + 1), Start: 1, Name: "vm"}})
	}
	return s
}
