package conformance_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest/conformance"
	"github.com/vmlockd/vmlockd/corosync/corosynctest/remote"
)

// insideEnv, set to the path of corosyncproxy, says that this process is in namespaces in which corosync may run.
const insideEnv = "VMLOCKD_COROSYNC_INSIDE"

// inside prepares the namespaces: nothing of this machine's corosync is seen or touched.
const inside = `set -e
ip link set lo up
for d in /etc/corosync /var/lib/corosync /run /dev/shm /var/log; do
	mkdir -p $d
	mount -t tmpfs none $d
done
cat >/etc/corosync/corosync.conf <<'END'
totem {
	version: 2
	cluster_name: one
	transport: knet
	crypto_cipher: none
	crypto_hash: none
}
logging {
	to_stderr: yes
	to_syslog: no
}
quorum {
	provider: corosync_votequorum
}
nodelist {
	node {
		nodeid: 1
		name: one
		ring0_addr: 127.0.0.1
	}
}
END
exec "$@"
`

func buildProxy(t *testing.T) string {
	t.Helper()
	proxy := filepath.Join(t.TempDir(), "corosyncproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", proxy, "../corosyncproxy")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return proxy
}

// TestOne is the suite on one real corosync, in namespaces of its own on this machine.
func TestOne(t *testing.T) {
	if os.Getenv("VMLOCKD_LAB") != "1" {
		t.Skip("VMLOCKD_LAB is not 1; this test starts a corosync, which needs root")
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", inside, "sh", os.Args[0], "-test.v", "-test.count=1", "-test.run=^TestInside", "-test.timeout=3m")
	cmd.Env = append(cmd.Environ(), insideEnv+"="+buildProxy(t))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// daemon is a corosync that is a child of this process.
type daemon struct {
	cmd *exec.Cmd
}

func (d *daemon) start(t testing.TB) {
	t.Helper()
	d.cmd = exec.Command("corosync", "-f")
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) stop(t testing.TB, sig syscall.Signal) {
	t.Helper()
	d.signal(t, sig)
	_ = d.cmd.Wait()
}

func skipOutside(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		t.Skipf("%s is not set: TestOne runs this in namespaces of its own", insideEnv)
	}
}

// TestInsideSuite is the suite, with processes that are corosyncproxy.
func TestInsideSuite(t *testing.T) {
	skipOutside(t)
	var d daemon
	d.start(t)
	defer func() { d.stop(t, syscall.SIGKILL) }()
	waitRunning(t)
	stops := 0
	conformance.Run(t, conformance.Site{
		Nodes: 1,
		Start: func(t testing.TB, _ int) conformance.Process {
			socket := filepath.Join(t.TempDir(), "s")
			p := exec.Command(os.Getenv(insideEnv), socket)
			p.Stderr = os.Stderr
			p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			dial := func() (net.Conn, error) { return net.Dial("unix", socket) }
			waitDial(t, dial)
			return process{remote.System(dial), func() {
				_ = p.Process.Kill()
				_ = p.Wait()
			}}
		},
		// In good order the first time, by force the next.
		StopCorosync: func(t testing.TB, _ int) {
			stops++
			d.stop(t, []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[stops%2])
		},
		StartCorosync: func(t testing.TB, _ int) { d.start(t) },
		Suspend:       func(t testing.TB, _ int) { d.signal(t, syscall.SIGSTOP) },
		Resume:        func(t testing.TB, _ int) { d.signal(t, syscall.SIGCONT) },
	})
}

func waitDial(t testing.TB, dial func() (net.Conn, error)) {
	t.Helper()
	waitFor(t, "the proxy", func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func waitRunning(t testing.TB) {
	t.Helper()
	c := corosync.NewCmap(corosync.Host())
	waitFor(t, "corosync", func() error {
		_, err := c.Get(t.Context(), "totem.cluster_name")
		return err
	})
}

func waitFor(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		<-tick.C // between two looks at the condition
	}
}

// TestInsideLeaks restarts corosync under a Group and a Quorum in this very process, and looks for what is left behind.
func TestInsideLeaks(t *testing.T) {
	skipOutside(t)
	var d daemon
	d.start(t)
	waitRunning(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	quick := corosync.Options{MaxRetry: 200 * time.Millisecond}
	g, err := corosync.Join(ctx, corosync.Host(), "leaks", quick)
	if err != nil {
		t.Fatal(err)
	}
	q, err := corosync.Track(ctx, corosync.Host(), quick)
	if err != nil {
		t.Fatal(err)
	}
	up := func(events <-chan corosync.Event, want bool) {
		t.Helper()
		for {
			select {
			case ev := <-events:
				switch ev := ev.(type) {
				case corosync.Up:
					if want {
						return
					}
				case corosync.Down:
					if !want {
						return
					}
					if !errors.Is(ev.Err, corosync.ErrNotRunning) {
						t.Fatal(ev.Err)
					}
				}
			case <-ctx.Done():
				t.Fatalf("waiting for up %v", want)
			}
		}
	}
	up(g.Events(), true)
	up(q.Events(), true)
	var before int
	for i := range 10 {
		d.stop(t, syscall.SIGKILL)
		up(g.Events(), false)
		up(q.Events(), false)
		d.start(t)
		up(g.Events(), true)
		up(q.Events(), true)
		if err := g.Send(ctx, []byte(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			before = descriptors(t)
		}
	}
	if now := descriptors(t); now > before+2 {
		t.Errorf("%d descriptors are open, after 8 restarts more than the %d before", now, before)
	}
	for range 50 {
		if _, err := corosync.NewCmap(corosync.Host()).List(ctx, "totem."); err != nil {
			t.Fatal(err)
		}
	}
	if now := descriptors(t); now > before+2 {
		t.Errorf("%d descriptors are open, after 50 questions to the cmap more than the %d before", now, before)
	}
	// Idle, it holds no thread and takes no time.
	var u0, u1 syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u0)
	<-time.After(time.Second)
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u1)
	if used := time.Duration(u1.Utime.Nano() + u1.Stime.Nano() - u0.Utime.Nano() - u0.Stime.Nano()); used > 200*time.Millisecond {
		t.Errorf("in a second without events it used %v of processor time", used)
	}
	if err := errors.Join(g.Close(ctx), q.Close(ctx)); err != nil {
		t.Error(err)
	}
	d.stop(t, syscall.SIGKILL)
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
