package dlm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
)

// What Linux 6.1 showed during a recovery of three nodes, on the lowest node and on another one.
func TestRecoverStatusRunning(t *testing.T) {
	for _, tc := range []struct {
		status  dlm.RecoverStatus
		running bool
	}{
		{0, false}, {0x7, false}, {0x1f, false}, {0x7f, false}, {0xff, true},
		{0x1, false}, {0x5, false}, {0x15, false}, {0x55, true},
	} {
		if got := tc.status.Running(); got != tc.running {
			t.Errorf("%#x: running %v", uint32(tc.status), got)
		}
		if got := tc.status.Stopped(); got != (tc.status == 0) {
			t.Errorf("%#x: stopped %v", uint32(tc.status), got)
		}
	}
}

func TestState(t *testing.T) {
	const name = "disks"
	c := dlmtest.NewCluster(2)
	if _, err := dlm.OpenState(c.Node(1), name); !errors.Is(err, dlm.ErrNoLockspace) {
		t.Fatalf("before it is entered: %v", err)
	}
	var states []*dlm.State
	var spaces []*dlm.Lockspace
	for id := 1; id <= 2; id++ {
		ls, err := dlm.Create(t.Context(), c.Node(id), name, dlm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := dlm.OpenState(c.Node(id), name)
		if err != nil {
			t.Fatal(err)
		}
		spaces, states = append(spaces, ls), append(states, s)
	}
	expect := func(when string, want ...bool) {
		t.Helper()
		for i, s := range states {
			if got, err := s.Running(); err != nil || got != want[i] {
				t.Errorf("%s: node %d: running %v, %v", when, i+1, got, err)
			}
		}
	}
	expect("entered", true, true)
	c.Node(1).Suspend(name)
	expect("node 1 stopped", false, true)
	c.Suspend(name)
	expect("stopped", false, false)
	c.Node(2).Recovering(name, 1)
	expect("node 2 waits for node 1", false, false)
	for i, want := range []dlm.RecoverStatus{0, dlm.RecoverNodes} {
		if st, err := states[i].Status(); err != nil || st != want {
			t.Errorf("node %d: status %#x, %v", i+1, uint32(st), err)
		}
	}
	if id, err := dlm.RecoverNode(c.Node(2).NewProcess(), name); err != nil || id != 1 {
		t.Errorf("node 2 waits for node %d, %v", id, err)
	}
	if _, err := dlm.RecoverNode(c.Node(2).NewProcess(), "other"); !errors.Is(err, dlm.ErrNoLockspace) {
		t.Errorf("of no lockspace: %v", err)
	}
	if _, err := dlm.RecoverNode(onlyKernel{}, name); !errors.Is(err, dlm.ErrNoState) {
		t.Errorf("of a kernel that cannot say it: %v", err)
	}
	c.Resume(name)
	expect("goes on", true, true)
	if st, err := states[1].Status(); err != nil || st != 0x55 {
		t.Errorf("status %#x, %v", uint32(st), err)
	}

	if err := spaces[0].Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := states[0].Running(); !errors.Is(err, dlm.ErrNoLockspace) {
		t.Errorf("left: %v", err)
	}
	if err := states[0].Close(); err != nil {
		t.Error(err)
	}
	if _, err := states[0].Running(); !errors.Is(err, dlm.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := states[0].Close(); !errors.Is(err, dlm.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	_ = states[1].Close()
	if err := spaces[1].Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

type textKernel struct {
	dlm.Kernel
	path string
}

func (k textKernel) RecoverStatus(string) (dlm.StateFile, error) { return os.Open(k.path) }

func TestStateText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recover_status")
	s := func(text string) *dlm.State {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := dlm.OpenState(textKernel{path: path}, "x")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	if ok, err := s("ff\n").Running(); !ok || err != nil {
		t.Error(ok, err)
	}
	for _, bad := range []string{"", "running\n", "1ffffffff\n"} {
		if _, err := s(bad).Running(); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := dlm.OpenState(onlyKernel{}, "x"); !errors.Is(err, dlm.ErrNoState) {
		t.Error(err)
	}
}

type onlyKernel struct{ dlm.Kernel }
