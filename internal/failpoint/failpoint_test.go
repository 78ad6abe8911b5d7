package failpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
)

var point = New("failpoint.test")

// TestMain is also the child that TestKills runs.
func TestMain(m *testing.M) {
	if os.Getenv("FAILPOINT_CHILD") != "" {
		for i := range 5 {
			point.Pass()
			fmt.Print(i)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestKills(t *testing.T) {
	for _, tc := range []struct {
		value, out string
		killed     bool
	}{
		{"", "01234", false},
		{"failpoint.test", "", true},
		{"failpoint.test:3", "01", true},
		{"failpoint.test:6", "01234", false},
		{"failpoint.other:1", "01234", false},
		{"failpoint.test:x", "01234", false},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FAILPOINT_CHILD=1", Variable+"="+tc.value)
		out, err := cmd.Output()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if string(out) != tc.out || killed != tc.killed {
			t.Errorf("%q: printed %q, killed %v (%v), want %q, %v", tc.value, out, killed, err, tc.out, tc.killed)
		}
	}
}

func TestParse(t *testing.T) {
	for v, ok := range map[string]bool{"": true, "a": true, "a:1": true, "a:0": false, "a:-1": false, "a:": false, ":1": false} {
		if _, _, err := parse(v); (err == nil) != ok {
			t.Errorf("parse(%q): %v", v, err)
		}
	}
}

func TestArm(t *testing.T) {
	calls := 0
	disarm := point.Arm(2, func() { calls++ })
	for range 3 {
		point.Pass()
	}
	if !point.Armed() || calls != 1 {
		t.Errorf("armed %v, %d calls, want true, 1", point.Armed(), calls)
	}
	disarm()
	point.Pass()
	if point.Armed() {
		t.Error("still armed")
	}
	if !slices.Contains(Names(), point.Name()) {
		t.Errorf("%q is not in %q", point.Name(), Names())
	}
	if Find(point.Name()) != point || Find("failpoint.other") != nil {
		t.Error("Find does not find what New made, and nothing else")
	}
	defer func() {
		if recover() == nil {
			t.Error("the same name twice is accepted")
		}
	}()
	New(point.Name())
}

func BenchmarkPass(b *testing.B) {
	for b.Loop() {
		point.Pass()
	}
}
