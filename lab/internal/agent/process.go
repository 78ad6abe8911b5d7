package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// afterTimeout bounds the wait for the sockets that a service is started after.
const afterTimeout = 5 * time.Minute

// processes are the node's services and background processes, by name.
type processes struct {
	env []string

	mu     sync.Mutex // guards what follows
	byName map[string]*process
	order  []string
}

func newProcesses(env []string) *processes {
	return &processes{env: env, byName: make(map[string]*process)}
}

// add registers a service of the configuration and starts it unless it is manual.
func (ps *processes) add(s wire.Service) {
	p := &process{spec: s, env: ps.env, state: wire.ProcessManual}
	ps.mu.Lock()
	ps.byName[s.Name] = p
	ps.order = append(ps.order, s.Name)
	ps.mu.Unlock()
	if s.Manual {
		return
	}
	p.mu.Lock()
	p.lockedBegin()
	p.mu.Unlock()
	go p.run()
}

// start starts a process that is not running: a new one or one with a new specification if spec is
// not nil, else the known one of that name. It returns when the program runs or could not be started.
func (ps *processes) start(spec *wire.Service, name string) (wire.ProcessStatus, error) {
	ps.mu.Lock()
	p := ps.byName[name]
	if p == nil {
		if spec == nil {
			ps.mu.Unlock()
			return wire.ProcessStatus{}, wire.Errorf(wire.CodeNotFound, "no process %q", name)
		}
		p = &process{env: ps.env, state: wire.ProcessManual}
		ps.byName[name] = p
		ps.order = append(ps.order, name)
	}
	ps.mu.Unlock()

	p.mu.Lock()
	if p.state == wire.ProcessRunning || p.state == wire.ProcessWaiting {
		p.mu.Unlock()
		return wire.ProcessStatus{}, wire.Errorf(wire.CodeState, "%s is %s already", name, p.state)
	}
	if spec != nil {
		p.spec = *spec
	}
	p.lockedBegin()
	started := p.started
	p.mu.Unlock()
	go p.run()
	<-started
	st := p.status()
	if st.State == wire.ProcessFailed {
		return st, wire.Errorf(wire.CodeNotRunnable, "%s: %s", name, st.Problem)
	}
	return st, nil
}

func (ps *processes) get(name string) (*process, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.byName[name]; p != nil {
		return p, nil
	}
	return nil, wire.Errorf(wire.CodeNotFound, "no process %q; there are: %s", name, strings.Join(ps.order, ", "))
}

func (ps *processes) list() []wire.ProcessStatus {
	ps.mu.Lock()
	ordered := make([]*process, 0, len(ps.order))
	for _, name := range ps.order {
		ordered = append(ordered, ps.byName[name])
	}
	ps.mu.Unlock()
	out := make([]wire.ProcessStatus, 0, len(ordered))
	for _, p := range ordered {
		out = append(out, p.status())
	}
	return out
}

// process is one program, possibly started several times in a row, never twice at once.
type process struct {
	env []string

	mu      sync.Mutex // guards what follows
	spec    wire.Service
	state   string
	pid     int
	code    int
	problem string
	starts  int
	started chan struct{} // closed when the current start runs or failed
	done    chan struct{} // closed when the current start has ended
}

func (p *process) lockedBegin() {
	p.state, p.problem, p.pid = wire.ProcessWaiting, "", 0
	p.started, p.done = make(chan struct{}), make(chan struct{})
	p.starts++
}

// run is the life of one start. It owns the state between lockedBegin and the closing of done.
func (p *process) run() {
	p.mu.Lock()
	spec, started, done := p.spec, p.started, p.done
	p.mu.Unlock()
	defer close(done)
	fail := func(err error) {
		p.mu.Lock()
		p.state, p.problem = wire.ProcessFailed, err.Error()
		p.mu.Unlock()
		fmt.Fprintf(os.Stderr, "lab: %s: %v\n", spec.Name, err)
		select {
		case <-started:
		default:
			close(started)
		}
	}
	if err := waitSockets(spec.After); err != nil {
		fail(err)
		return
	}
	for again := 0; ; again++ {
		cmd, logFile, err := p.command(spec)
		if err != nil {
			fail(err)
			return
		}
		err = cmd.Start()
		logFile.Close()
		if err != nil {
			fail(err)
			return
		}
		p.mu.Lock()
		p.state, p.pid = wire.ProcessRunning, cmd.Process.Pid
		p.mu.Unlock()
		if again == 0 {
			close(started)
		}
		_ = cmd.Wait() // the status is in ProcessState
		fmt.Fprintf(os.Stderr, "lab: %s ended: %v\n", spec.Name, cmd.ProcessState)
		retry := again < maxRetries && cmd.ProcessState.ExitCode() > 0 && spec.RetryOn != "" && strings.Contains(lastOutput(logPath(spec)), spec.RetryOn)
		p.mu.Lock()
		p.state, p.code = wire.ProcessExited, exitStatus(cmd.ProcessState)
		if retry {
			p.state, p.pid = wire.ProcessWaiting, 0
		}
		p.mu.Unlock()
		if !retry {
			return
		}
		time.Sleep(time.Second) // as it waits for something that takes seconds
	}
}

// maxRetries is how often a service that wants it is started again.
const maxRetries = 5

func logPath(spec wire.Service) string { return filepath.Join(wire.LogDir, spec.LogName()) }

// lastOutput is the end of a log, as long as a few lines.
func lastOutput(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const few = 512
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(size-few, 0), io.SeekStart)
	}
	b, _ := io.ReadAll(io.LimitReader(f, few))
	return string(b)
}

func (p *process) command(spec wire.Service) (*exec.Cmd, *os.File, error) {
	if len(spec.Args) == 0 {
		return nil, nil, errors.New("no command")
	}
	path, err := lookPath(spec.Args[0])
	if err != nil {
		return nil, nil, err
	}
	logFile, err := os.OpenFile(logPath(spec), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(path, spec.Args[1:]...)
	cmd.Args[0] = spec.Args[0]
	cmd.Env = append(p.env[:len(p.env):len(p.env)], spec.Env...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// A session of its own: a signal to its group reaches it and its children only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, logFile, nil
}

func (p *process) status() wire.ProcessStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return wire.ProcessStatus{
		Name: p.spec.Name, State: p.state, PID: p.pid, Status: p.code, Problem: p.problem, Starts: p.starts,
	}
}

// signal is sent with the lock held: the process is not waited for in between, so the pid is still its own.
func (p *process) signal(sig syscall.Signal, group bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != wire.ProcessRunning {
		return wire.Errorf(wire.CodeState, "%s is not running (%s)", p.spec.Name, p.state)
	}
	target := p.pid
	if group {
		target = -target
	}
	// ESRCH: it has just ended and run has not noted it yet.
	if err := syscall.Kill(target, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// wait returns when the current start has ended.
func (p *process) wait(ctx context.Context) (wire.ProcessStatus, error) {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done == nil {
		return p.status(), nil
	}
	select {
	case <-done:
		return p.status(), nil
	case <-ctx.Done():
		return wire.ProcessStatus{}, ctx.Err()
	}
}

// waitSockets waits until every named unix socket listens. It reads the kernel's table instead of
// connecting: a connection would be served, logged and counted by the daemon under test.
func waitSockets(names []string) error {
	deadline := time.Now().Add(afterTimeout)
	for {
		missing, err := notListening(names)
		if err != nil || len(missing) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not started: after %v nobody listens on %s", afterTimeout, strings.Join(missing, ", "))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func notListening(names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	missing := slices.Clone(names)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON.
		fields := strings.Fields(sc.Text())
		if len(fields) < 8 || fields[3] != "00010000" {
			continue
		}
		// Abstract names are padded with NULs to the size of the address by some libraries, shown as @.
		name := fields[7]
		if strings.HasPrefix(name, "@") {
			name = "@" + strings.Trim(name, "@")
		}
		missing = slices.DeleteFunc(missing, func(n string) bool {
			return n == name || strings.TrimPrefix(n, "/var") == strings.TrimPrefix(name, "/var")
		})
	}
	return missing, nil
}
