package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// TestStartFails: a start that does not succeed leaves nothing running and says why.
func TestStartFails(t *testing.T) {
	lab.Need(t, lab.Config{})
	name := fmt.Sprintf("fails-%d", os.Getpid())
	gone := func() {
		t.Helper()
		running, err := lab.Running()
		ok(t, err)
		if slices.Contains(running, name) {
			t.Errorf("%s is running", name)
		}
	}
	// Given up when the second kernel has said its first words: by condition, as a fast machine has a cluster in 3 s.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	logs := t.TempDir()
	go func() {
		defer cancel()
		_ = lab.WaitFor(ctx, "the console of node 2", func(context.Context) (bool, error) { // it fails only if the start has ended before
			st, err := os.Stat(filepath.Join(logs, "node2", "console.log"))
			return err == nil && st.Size() > 0, nil
		})
	}()
	_, err := lab.Start(ctx, lab.Config{Name: name, Nodes: 2, LogDir: logs})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("start that is given up: %v", err)
	}
	gone()

	// The node's kernel does not have this module: its first process says so and ends.
	_, err = lab.Start(within(t, soon), lab.Config{Name: name, Nodes: 1, Modules: []string{"no-such-module"}, LogDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "no-such-module") {
		t.Errorf("start with a module that is not there: %v", err)
	}
	gone()

	// A kernel that panics is off, not hung.
	l, err := lab.Start(within(t, soon), lab.Config{Name: name, Nodes: 1, NoCluster: true, LogDir: t.TempDir()})
	ok(t, err)
	if res, err := l.Node(1).Shell(t.Context(), "echo c > /proc/sysrq-trigger"); !errors.Is(err, lab.ErrNodeOff) {
		t.Errorf("panic: %v, %v", res, err)
	}
	ok(t, l.Node(1).Boot(within(t, soon)))
	// So is one that switches itself off.
	if res, err := l.Node(1).Shell(t.Context(), "echo o > /proc/sysrq-trigger; sleep 100"); !errors.Is(err, lab.ErrNodeOff) {
		t.Errorf("power off: %v, %v", res, err)
	}
	ok(t, l.Close())

	l, err = lab.Start(within(t, soon), lab.Config{Name: name, Nodes: 1, NoCluster: true, LogDir: t.TempDir()})
	ok(t, err)
	_, err = lab.Start(within(t, soon), lab.Config{Name: name, Nodes: 1, NoCluster: true, LogDir: t.TempDir()})
	if !errors.Is(err, lab.ErrState) {
		t.Errorf("second lab of the same name: %v", err)
	}
	// Another process may end it.
	attached, err := lab.Attach(t.Context(), name)
	ok(t, err)
	ok(t, attached.Close())
	ok(t, l.Close())
	gone()
	if _, err := lab.Attach(t.Context(), name); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("attach to a lab that has ended: %v", err)
	}
}
