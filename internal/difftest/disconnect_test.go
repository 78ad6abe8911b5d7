package difftest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/owner"
)

// puppetEnv has the socket that a puppet is to use.
const puppetEnv = "DIFFTEST_PUPPET"

// puppet is a process that makes connections of its own and does what it is
// told, so that it can be the owner who disconnects.
type puppet struct {
	t     *testing.T
	d     *daemon
	cmd   *exec.Cmd
	in    io.Writer
	out   *bufio.Reader
	ended <-chan error
}

func newPuppet(t *testing.T, d *daemon, options ...string) *puppet {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestPuppet$")
	cmd.Env = append(os.Environ(), puppetEnv+"="+d.socket, "DIFFTEST_OPTIONS="+strings.Join(options, ","))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	p := &puppet{t: t, d: d, cmd: cmd, in: in, out: bufio.NewReader(out)}
	p.ended = start(t, cmd)
	return p
}

func (p *puppet) pid() int32 { return int32(p.cmd.Process.Pid) }

// do makes the puppet do something and waits until it is done.
func (p *puppet) do(format string, args ...any) {
	p.t.Helper()
	fmt.Fprintf(p.in, format+"\n", args...)
	line, err := p.out.ReadString('\n')
	if err != nil || line != "ok\n" {
		p.t.Fatalf("%s: puppet asked to %s: %q, %v", p.d.name, fmt.Sprintf(format, args...), line, err)
	}
}

// last makes the puppet do what may be its end.
func (p *puppet) last(command string) {
	fmt.Fprintln(p.in, command)
}

// send makes the puppet send a step on its connection on, and wants an OK.
func (p *puppet) send(s step) {
	p.t.Helper()
	p.do("send %d %x", s.on, s.make(p.d).bytes(1))
}

// wantSignal waits for the puppet's end.
func (p *puppet) wantSignal(want syscall.Signal) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(ioTimeout):
		p.t.Fatalf("%s: the owner is not ended", p.d.name)
	}
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != want {
		p.t.Errorf("%s: the owner ended with %v, want %v", p.d.name, p.cmd.ProcessState, want)
	}
}

// TestPuppet is not a test: it is what a puppet runs.
func TestPuppet(t *testing.T) {
	socket := os.Getenv(puppetEnv)
	if socket == "" {
		t.Skip("this runs only as a process of another test: " + puppetEnv + " is not set")
	}
	if strings.Contains(os.Getenv("DIFFTEST_OPTIONS"), "stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	conns := map[int]net.Conn{}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var on int
		var data []byte
		var err error
		verb, rest, _ := strings.Cut(in.Text(), " ")
		_, _ = fmt.Sscanf(rest, "%d %x", &on, &data)
		if conns[on] == nil {
			if conns[on], err = net.Dial("unix", socket); err != nil {
				t.Fatal(err)
			}
		}
		switch verb {
		case "send":
			_, err = conns[on].Write(data)
			var head [28]byte
			if err == nil {
				_, err = io.ReadFull(conns[on], head[:])
			}
			if err == nil && head[27] != 0 {
				err = fmt.Errorf("refused")
			}
		case "garbage":
			_, err = conns[on].Write(make([]byte, 28))
		case "close":
			err = conns[on].Close()
			delete(conns, on)
		}
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	os.Exit(0)
}

// TestDisconnects is about what the end of a connection does to its owner and
// to the owner's locks.
func TestDisconnects(t *testing.T) {
	theirs, ours := both(t)
	tests := []struct {
		name    string
		options []string
		// act makes the puppet, or others, do everything up to the disconnect.
		act func(p *puppet, other *conn)
		// ends says how the owner must end; 0 is that it lives on and keeps $D/d0,
		// or that it holds nothing if that is free.
		ends syscall.Signal
		free bool
	}{
		{name: "the holder closes", ends: syscall.SIGTERM, act: func(p *puppet, _ *conn) {
			p.send(register(0, p.pid(), 1, 0))
			p.send(acquire(0, "", "$D/d0", 0))
			p.last("close 0")
		}},
		{name: "somebody else took the lock, and the owner was restricted", ends: syscall.SIGTERM, act: func(p *puppet, other *conn) {
			p.send(register(0, p.pid(), 1, 0))
			p.send(restrict(0, 0))
			other.ok(register(0, p.pid(), 1, 0))
			other.ok(acquire(0, "", "$D/d0", 0))
			p.last("close 0")
		}},
		{name: "a protocol error", ends: syscall.SIGTERM, act: func(p *puppet, _ *conn) {
			p.send(register(0, p.pid(), 1, 0))
			p.send(acquire(0, "", "$D/d0", 0))
			p.last("garbage 0")
		}},
		{name: "another connection of the owner is open", ends: syscall.SIGTERM, act: func(p *puppet, _ *conn) {
			p.send(register(1, p.pid(), 1, 0))
			p.send(register(0, p.pid(), 1, 0))
			p.send(acquire(0, "", "$D/d0", 0))
			p.last("close 1")
		}},
		{name: "an owner that ignores SIGTERM", options: []string{"stubborn"}, ends: syscall.SIGKILL, act: func(p *puppet, _ *conn) {
			p.send(register(0, p.pid(), 1, 0))
			p.send(acquire(0, "", "$D/d0", 0))
			p.last("close 0")
		}},
		{name: "an owner that holds nothing", free: true, act: func(p *puppet, _ *conn) {
			p.send(register(0, p.pid(), 1, 0))
			p.send(acquire(0, "", "$D/d0", 0))
			p.send(release(0, "", "$D/d0"))
			p.do("close 0")
		}},
		{name: "an owner that now speaks for another", act: func(p *puppet, _ *conn) {
			p.send(register(0, p.pid(), 1, 0))
			p.send(acquire(0, "", "$D/d0", 0))
			p.send(register(0, noProcess, 1, 0))
			p.do("close 0")
		}},
		{name: "somebody else closes", act: func(p *puppet, other *conn) {
			other.ok(register(0, p.pid(), 1, 0))
			other.ok(acquire(0, "", "$D/d0", 0))
			must(other.t, other.c.Close())
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, d := range []*daemon{theirs, ours} {
				p := newPuppet(t, d, test.options...)
				other := d.dial(t)
				test.act(p, other)
				if test.ends != 0 {
					p.wantSignal(test.ends)
					// The lock is free at the latest soon after that.
					watcher := d.dial(t)
					watcher.ok(register(0, -1, 1, 0))
					eventually(t, "the lock is free on "+d.name, func() bool {
						o := watcher.do(acquire(0, "", "$D/d0", 0).make(d))
						return len(o.Replies) == 1 && o.Replies[0].Status == 0
					})
					watcher.ok(release(0, "", "$D/d0"))
					continue
				}
				// It lives, and can still do what it likes.
				p.send(register(5, p.pid(), 1, 0))
				if test.free {
					p.send(acquire(5, "", "$D/d0", 0))
				}
				p.send(release(5, "", "$D/d0"))
				p.do("close 5")
				p.send(register(6, p.pid(), 1, 0))
			}
		})
	}
}

// TestNobodyWaitsForAnOwnerToEnd: virtlockd serves nobody until the owner is
// gone, and has given its locks away before that. vmlockd does neither.
func TestNobodyWaitsForAnOwnerToEnd(t *testing.T) {
	ours := &daemon{name: "vmlockd", dir: workDir(t)}
	ours.socket = startVmlockd(t)
	p := newPuppet(t, ours, "stubborn")
	p.send(register(0, p.pid(), 1, 0))
	p.send(acquire(0, "", "$D/d0", 0))
	watcher := ours.dial(t)
	watcher.ok(register(0, -1, 1, 0))
	// serve has the watcher served once, and says whether the lock is held.
	serve := func() (held bool) {
		held = watcher.do(acquire(0, "", "$D/d0", 0).make(ours)).Replies[0].Status != 0
		watcher.ok(acquire(0, "", "$D/d1", 0))
		watcher.ok(release(0, "", "$D/d1"))
		return held
	}
	// A machine that is busy with other things serves less often at all times.
	const sample = 20
	begin := time.Now()
	for range sample {
		if !serve() {
			t.Fatal("the lock is free while its owner has it")
		}
	}
	each := time.Since(begin) / sample
	least := max(1, min(100, int(owner.TermGrace/(4*each))))
	p.do("close 0")
	served := 0
	for serve() {
		served++
	}
	if served < least {
		t.Errorf("somebody else was served only %d times in the %v that the owner took to end, and before that once in %v", served, owner.TermGrace, each)
	}
	if syscall.Kill(int(p.pid()), 0) == nil && !zombie(p.pid()) {
		t.Error("the lock was free before its owner was gone")
	}
	p.wantSignal(syscall.SIGKILL)
}

// zombie says whether a process has ended and is only waited for.
func zombie(pid int32) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, _ := cutLast(string(b), ") ")
	return strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}

// ok does a step and wants it to succeed.
func (c *conn) ok(s step) {
	c.t.Helper()
	if o := c.do(s.make(c.d)); len(o.Replies) != 1 || o.Replies[0].Status != 0 {
		c.t.Fatalf("%s: %s: %s", c.d.name, s.what, brief(o))
	}
}
