package crash_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// operatorRound is about what an operator does. The daemon is killed after the workload,
// and the record of one lock is damaged. The environment is that of the next daemon,
// which finds that, and is told to drain the host and to settle the doubt. What it was
// killed at is done by the one after it, and everything is checked.
func (w *world) operatorRound(t *testing.T, env, name string) (killed bool) {
	vms, state := w.killedHolding(t)
	w.damage(t, w.names[3])

	d := w.start(t, env)
	w.awaitControl(t, d)
	if !d.ended() {
		w.refused(t, d, w.names[3])
	}
	draining, settled := false, false
	if !d.ended() {
		draining = w.drain(t, d, true)
	}
	if undo := strings.HasPrefix(name, "daemon.undrain."); undo && !d.ended() && w.drain(t, d, false) {
		t.Error("the daemon was to be killed at the end of the drain")
	}
	if !d.ended() {
		vms[2].end() // nothing uses the disk any more
		settled = w.settle(t, d)
	}
	if !d.ended() {
		d.stop(t)
	}
	<-d.done
	killed = endedBySignal(d.err)
	if !killed && d.err != nil {
		t.Fatalf("the daemon ended by itself: %v\n%s", d.err, d.out.String())
	}

	again := w.start(t, "")
	defer func() {
		again.stop(t)
		if t.Failed() {
			t.Logf("the daemon that was to end:\n%s\nthe daemon after it:\n%s", d.out.String(), again.out.String())
		}
	}()
	w.awaitControl(t, again)
	client := w.control()
	defer client.Close()
	drained, err := client.Drained(t.Context())
	switch {
	case err != nil:
		t.Fatal(err)
	case draining && !drained.Draining && name != "daemon.undrain.remove.after", name == "daemon.drain.rename.after" && !drained.Draining:
		t.Error("the host was to be drained, and the next daemon does not know that")
	case (name == "daemon.drain.rename.before" || name == "daemon.undrain.remove.after") && drained.Draining:
		t.Error("the host is drained, and what says so was not written, or removed")
	}
	doubt, err := client.Doubt(t.Context())
	switch {
	case err != nil:
		t.Fatal(err)
	case settled && doubt.Doubtful:
		t.Error("the doubt was settled, and the next daemon has it")
	case !doubt.Doubtful && !w.audited(t):
		t.Error("the doubt is over, and the audit log does not say who settled it")
	case doubt.Doubtful:
		if !strings.HasPrefix(name, "local.restore.drop.") && !strings.HasPrefix(name, "journal.settled.") {
			w.refused(t, again, w.names[3])
		}
		vms[2].end()
		if !w.settle(t, again) {
			t.Error("the doubt cannot be settled")
		}
	}
	w.drain(t, again, false)
	for _, st := range state {
		if st.owners[vms[2]] > 0 {
			st.doubt = true // nothingIsLeft sees that it is freed
		}
	}
	w.check(t, vms, state)
	w.nothingIsLeft(t, vms)
	// All of that is over for the next one too.
	again.stop(t)
	again = w.start(t, "")
	w.awaitControl(t, again)
	if doubt, err := client.Doubt(t.Context()); err != nil || doubt.Doubtful {
		t.Errorf("the doubt was settled, and the next daemon says %+v, %v", doubt, err)
	}
	if drained, err := client.Drained(t.Context()); err != nil || drained.Draining {
		t.Errorf("the drain was ended, and the next daemon says %+v, %v", drained, err)
	}
	if !w.audited(t) {
		t.Error("the audit log does not say who settled the doubt")
	}
	return killed
}

// damage changes one byte of the last record of a name in the journal.
func (w *world) damage(t *testing.T, name string) {
	t.Helper()
	path := w.journal(t)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte(name))
	if at < 0 {
		t.Fatalf("the journal says nothing of %s", name)
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) control() *control.Client {
	return control.NewClient(filepath.Join(w.dir, "run", "control.sock"))
}

// awaitControl waits for the control socket, which is served a little later than locks
// are, or for the daemon's end.
func (w *world) awaitControl(t *testing.T, d *daemon) {
	t.Helper()
	c := w.control()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the control socket to answer", func(ctx context.Context) (bool, error) {
		_, err := c.Status(ctx)
		return err == nil || d.ended(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// drain begins or ends a drain, and reports whether the daemon said that it did.
func (w *world) drain(t *testing.T, d *daemon, on bool) bool {
	t.Helper()
	return w.operate(t, d, "drain", func(ctx context.Context, c *control.Client) error {
		_, err := c.Drain(ctx, control.DrainRequest{Undo: !on, Reason: "a test"})
		return err
	})
}

// settle reports whether the daemon said that the doubt is over.
func (w *world) settle(t *testing.T, d *daemon) bool {
	t.Helper()
	return w.operate(t, d, "settle", func(ctx context.Context, c *control.Client) error {
		s, err := c.Settle(ctx, control.SettleRequest{Force: true, Reason: "a test"})
		if err == nil && s.Doubtful {
			return errors.New("the doubt is not over")
		}
		return err
	})
}

// operate does what a daemon must do unless it ends meanwhile.
func (w *world) operate(t *testing.T, d *daemon, what string, f func(context.Context, *control.Client) error) bool {
	t.Helper()
	c := w.control()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := f(ctx, c)
	if err == nil {
		return true
	}
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
		t.Errorf("%s: %v", what, err)
	}
	return false
}

// refused sees that what a damaged journal may have told of goes to nobody.
func (w *world) refused(t *testing.T, d *daemon, name string) {
	t.Helper()
	known, err := w.acquire(newVM(t, 9), name, 0)
	if known && err == nil {
		t.Errorf("%s was granted to a stranger, and the journal may have said that it is held", name)
	}
	if !known && !d.ended() {
		t.Errorf("%s: %v", name, err)
	}
	if got := kernelMode(t, w.path(name)); got != exclusive {
		t.Errorf("the kernel says that %s is %s", name, got)
	}
}

// audited reports whether the audit log says that somebody settled a doubt.
func (w *world) audited(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "audit.log"))
	if err != nil {
		t.Error(err)
	}
	return bytes.Contains(b, []byte(`"action":"settle"`))
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(t *testing.T, pid int) (list []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid: the name may have anything in it, see proc(5).
		rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(rest) > 1 && rest[1] == fmt.Sprint(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, child)
		}
	}
	return list
}

// endProcess kills a process, and waits until it has nothing open any more.
func endProcess(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, fmt.Sprintf("the end of process %d", pid), func(context.Context) (bool, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return true, nil
		}
		rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		return len(rest) > 0 && rest[0] == "Z", nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
