package inherited_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/inherited"
)

const childEnv = "VMLOCKD_TEST_INHERITED"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child was started with descriptors 3 to 5, and keeps 3 and what it opens.
func child() error {
	r, w, err := os.Pipe() // makes the runtime's poller
	if err != nil {
		return err
	}
	if err := inherited.Close(4); err != nil {
		return err
	}
	for fd, open := range map[uintptr]bool{3: true, 4: false, 5: false, r.Fd(): true, w.Fd(): true} {
		if _, err := unix.FcntlInt(fd, unix.F_GETFD, 0); (err == nil) != open {
			return fmt.Errorf("descriptor %d: %v, want open %v", fd, err, open)
		}
	}
	go w.Write([]byte("x"))
	_, err = r.Read(make([]byte, 1)) // the poller works
	return err
}

func TestClose(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.ExtraFiles = []*os.File{null, null, null}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
