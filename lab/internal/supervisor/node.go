package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// bootTimeout bounds the time from power-on to the agent's first answer. It takes two seconds on an
// idle machine.
const bootTimeout = 2 * time.Minute

// errPowerLost ends the requests that were under way when a node lost its power.
var errPowerLost = wire.Errorf(wire.CodeNodeOff, "the node lost its power")

// node is one machine. Its User-Mode Linux has a PID namespace of its own, because it is many processes on the
// host: killing the namespace's process 1, the holder, ends them all at one instant, as a power cut does.
type node struct {
	sup *supervisor
	cfg wire.NodeConfig
	dir string // its directory on the work tmpfs

	mu    sync.Mutex // guards what follows
	state string
	cut   bool
	boots int
	cmd   *exec.Cmd // User-Mode Linux
	hold  *exec.Cmd // the holder
	// power is done when this boot's power is lost; the requests to the agent end with it.
	power context.Context
	off   chan struct{} // closed when the processes of this boot are gone
}

func (s *supervisor) newNode(cfg wire.NodeConfig) (*node, error) {
	n := &node{sup: s, cfg: cfg, dir: filepath.Join(s.work, "node"+strconv.Itoa(cfg.ID)), state: wire.NodeOff}
	for _, d := range []string{"log", "private", "uml"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// What the configuration calls the host's directories are names under the work directory, which only
	// the supervisor knows.
	for i := range n.cfg.Mounts {
		m := &n.cfg.Mounts[i]
		if m.Host == "" {
			continue
		}
		m.Host = filepath.Join(s.work, m.Host)
		if err := os.MkdirAll(m.Host, 0o755); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(n.cfg)
	if err != nil {
		return nil, err
	}
	return n, os.WriteFile(filepath.Join(n.dir, "node.json"), b, 0o644)
}

// boot switches the power on and waits for the agent. The cluster takes longer; that is not waited for.
func (n *node) boot(ctx context.Context) error {
	n.mu.Lock()
	if n.state != wire.NodeOff {
		defer n.mu.Unlock()
		return wire.Errorf(wire.CodeState, "node %d is %s already", n.cfg.ID, n.state)
	}
	console, err := os.OpenFile(n.consoleLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		n.mu.Unlock()
		return err
	}
	defer console.Close()
	n.boots++
	fmt.Fprintf(console, "\n===== node %d: boot %d at %s =====\n", n.cfg.ID, n.boots, time.Now().Format(time.RFC3339))
	cmd := exec.Command("linux.uml", n.arguments()...)
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(n.sup.work, "memory"))
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	hold, err := startHeld(cmd)
	if err != nil {
		n.mu.Unlock()
		return err
	}
	power, lost := context.WithCancelCause(context.Background())
	off := make(chan struct{})
	n.cmd, n.hold, n.power, n.off, n.state = cmd, hold, power, off, wire.NodeBooting
	n.mu.Unlock()
	go func() {
		_ = cmd.Wait() // how it ended is on the console
		// If its kernel has ended by itself, its processes may still be there.
		_ = hold.Process.Kill()
		_ = hold.Wait()
		n.mu.Lock()
		n.state = wire.NodeOff
		n.mu.Unlock()
		lost(errPowerLost) // whoever learns it may boot the node at once
		close(off)
		n.sup.log.Printf("node %d is off: %v", n.cfg.ID, cmd.ProcessState)
	}()
	if err := n.waitAgent(ctx, power); err != nil {
		n.powerCut()
		return fmt.Errorf("node %d did not boot: %w; the end of its console:\n%s", n.cfg.ID, err, tail(n.consoleLog(), 2000))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	// It may have lost its power again in between.
	if n.state == wire.NodeBooting {
		n.state = wire.NodeRunning
	}
	return nil
}

func (n *node) consoleLog() string {
	return filepath.Join(n.sup.cfg.LogDir, "node"+strconv.Itoa(n.cfg.ID), "console.log")
}

// arguments is the kernel's command line. What follows "--" goes to the first process.
func (n *node) arguments() []string {
	args := []string{
		fmt.Sprintf("mem=%dM", n.sup.cfg.MemoryMB),
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"con=null", "con0=null,fd:1", "ssl=null",
		"uml_dir=" + filepath.Join(n.dir, "uml"), "umid=uml",
		// A kernel that panics ends, instead of standing there like one that is only slow.
		"panic=1",
		"init=" + filepath.Join(n.sup.work, "bin", "lab"),
	}
	for i, tap := range []string{clusterTap(n.cfg.ID), commandTap(n.cfg.ID)} {
		args = append(args, fmt.Sprintf("vec%d:transport=tap,ifname=%s,depth=64,gro=1,mac=02:00:00:00:%02x:%02x", i, tap, i, n.cfg.ID))
	}
	if n.sup.cfg.DeviceMB > 0 {
		// c: shared with the other nodes, so not locked.
		args = append(args, "ubd0c="+n.sup.device())
	}
	return append(args, "--", "init", filepath.Join(n.dir, "node.json"))
}

func (n *node) agentURL(path string) string {
	return "http://" + net.JoinHostPort(wire.CommandAddr(n.cfg.ID), strconv.Itoa(wire.AgentPort)) + path
}

func (n *node) waitAgent(ctx, power context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("no answer within %v", bootTimeout))
	defer cancel()
	stop := context.AfterFunc(power, cancel)
	defer stop()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for {
		err := wire.Call(ctx, client, http.MethodGet, n.agentURL("/ready"), nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			if power.Err() != nil {
				return errors.New("its kernel ended")
			}
			return context.Cause(ctx)
		}
	}
}

// powerCut ends all processes of the node at once and returns when they are gone. A node without
// power stays so.
func (n *node) powerCut() {
	n.mu.Lock()
	if n.state == wire.NodeOff {
		n.mu.Unlock()
		return
	}
	off := n.off
	// The kernel then kills all of the namespace, also what is stopped.
	_ = n.hold.Process.Kill()
	n.mu.Unlock()
	<-off
}

// freeze stops the node's kernel, and with it everything in the node, between two instructions.
func (n *node) freeze(freeze bool) error {
	from, to, sig := wire.NodeRunning, wire.NodeFrozen, syscall.SIGSTOP
	if !freeze {
		from, to, sig = to, from, syscall.SIGCONT
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch n.state {
	case to:
		return nil
	case from:
	default:
		return wire.Errorf(wire.CodeState, "node %d is %s", n.cfg.ID, n.state)
	}
	if err := n.cmd.Process.Signal(sig); err != nil {
		return err
	}
	n.state = to
	return nil
}

func (n *node) setCut(cut bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut == cut {
		return nil
	}
	if err := setCut(n.cfg.ID, cut); err != nil {
		return err
	}
	n.cut = cut
	return nil
}

func (n *node) status() wire.NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := wire.NodeStatus{ID: n.cfg.ID, State: n.state, Cut: n.cut, Boots: n.boots, Addr: wire.ClusterAddr(n.cfg.ID)}
	if n.state != wire.NodeOff {
		st.PID = n.cmd.Process.Pid
	}
	return st
}

// powered returns the context of the present boot, or an error for a node without power.
func (n *node) powered() (context.Context, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == wire.NodeOff {
		return nil, wire.Errorf(wire.CodeNodeOff, "node %d has no power", n.cfg.ID)
	}
	return n.power, nil
}

// tail returns the last size bytes of a file, from the start of a line.
func tail(path string, size int) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	if len(b) <= size {
		return b
	}
	b = b[len(b)-size:]
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[i+1:]
	}
	return b
}
