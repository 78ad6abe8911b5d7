package daemon

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
)

// open is a descriptor that the test closes.
func open(t *testing.T) int {
	t.Helper()
	fd := give(t)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// give is a descriptor for somebody who closes it.
func give(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func closesOnExec(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.FD_CLOEXEC != 0
}

// leave makes text the state of an earlier program.
func leave(t *testing.T, text []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("state", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, text); err != nil {
		t.Fatal(err)
	}
	t.Setenv(stateEnv, strconv.Itoa(fd))
}

func TestStateKeepsLocks(t *testing.T) {
	device, listener := open(t), give(t)
	s := &state{Version: stateLocks, Socket: "/sock", Listener: listener, kept: keptLocks{cluster: &dlm.Handover{Lockspace: "disks", FD: device}}}
	f, err := s.write()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !closesOnExec(t, int(f.Fd())) {
		t.Error("children would have the state")
	}
	text, err := readAll(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := cloexec(device, false); err != nil { // as execute leaves it
		t.Fatal(err)
	}
	leave(t, text)
	got, err := inherit()
	if err != nil {
		t.Fatal(err)
	}
	defer got.listener.Close()
	h := got.kept.takeCluster()
	if h == nil || h.FD != device || h.Lockspace != "disks" || got.Socket != "/sock" || got.Version != stateLocks {
		t.Fatalf("%+v, %+v", got, h)
	}
	if !closesOnExec(t, device) {
		t.Error("children would have the device, and the locks would live as long as they")
	}
	if got.kept.takeCluster() != nil || got.kept.takeLocal() != nil {
		t.Error("it can be taken twice")
	}
	if _, again := os.LookupEnv(stateEnv); again {
		t.Error("children would be told of the state")
	}
}

// The state of a program that keeps no locks open, and what is no state.
func TestStatesOfOthers(t *testing.T) {
	const listener = "FD"
	for _, c := range []struct{ text, want string }{
		{`{"Version":1,"Socket":"/sock","Listener":` + listener + `}`, ""},
		{`{"Version":2,"Socket":"/sock","Listener":` + listener + "}\n", ""},
		{`{"Version":3,"Socket":"/sock","Listener":` + listener + `}`, ""},
		{`{"Version":4,"Socket":"/sock","Listener":` + listener + `}`, "version 4"},
		{`{"Version":2,"Socket":"/sock","Backend":"cluster","Listener":` + listener + "}\nnonsense", `backend "cluster"`},
		{`{"Version":2,"Socket":"/sock","Backend":"local","Listener":` + listener + "}\n", `backend "local"`},
		{`{"Version":2,"Socket":"/sock","Backend":"other","Listener":` + listener + "}\n", "unknown backend"},
		{`{"Version":2,`, "read the state"},
	} {
		fd := give(t)
		leave(t, []byte(strings.Replace(c.text, listener, strconv.Itoa(fd), 1)))
		got, err := inherit()
		switch {
		case c.want == "" && (err != nil || got.kept.fds() != nil):
			t.Errorf("%s: %+v, %v", c.text, got, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, and not %q", c.text, err, c.want)
		}
		if got != nil {
			got.listener.Close()
		} else {
			unix.Close(fd)
		}
	}
	if !CanTakeOver(1) || !CanTakeOver(2) || !CanTakeOver(3) || CanTakeOver(0) || CanTakeOver(4) {
		t.Error("it can take over from others than it says")
	}
}

func TestInheritable(t *testing.T) {
	a, b := open(t), open(t)
	failed := errors.New("no such program")
	err := inheritable([]int{a, b}, func() error {
		if closesOnExec(t, a) || closesOnExec(t, b) {
			t.Error("the next program would not have them")
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("the error is %v", err)
	}
	err = inheritable([]int{a, 1 << 20, b}, func() error {
		t.Error("executed without one")
		return nil
	})
	if !errors.Is(err, unix.EBADF) {
		t.Errorf("the error is %v", err)
	}
	if !closesOnExec(t, a) || !closesOnExec(t, b) {
		t.Error("children would have them after a failure")
	}
}
