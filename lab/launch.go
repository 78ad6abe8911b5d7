package lab

import (
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
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/supervisor"
	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// pidFile, in the run directory, has the supervisor's pid: it sees itself as process 1.
const pidFile = "pid"

// supervisorLog is the supervisor's log in Config.LogDir.
const supervisorLog = "supervisor.log"

// launch starts the supervisor and waits until it answers.
func (l *Lab) launch(ctx context.Context, cfg Config) error {
	if err := prepareLogs(cfg); err != nil {
		return err
	}
	config, err := json.MarshalIndent(cfg.wireConfig(), "", "\t")
	if err != nil {
		return err
	}
	binary, remove, err := labBinary(cfg.Binary)
	if err != nil {
		return err
	}
	defer remove() // the supervisor has its own copy once it answers

	runDir, lock, err := makeRunDir(cfg.Name)
	if err != nil {
		return err
	}
	defer lock.Close()
	err = os.WriteFile(filepath.Join(runDir, supervisor.ConfigFile), config, 0o600)
	if err == nil {
		err = l.spawn(cfg, binary, runDir, lock)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(runDir)) // from here on the supervisor removes it
	}
	l.connect(runDir, cfg.all())
	l.members = cfg.Nodes
	return l.waitSupervisor(ctx)
}

// prepareLogs makes the directories for the logs and removes what an earlier lab has left there.
func prepareLogs(cfg Config) error {
	old, err := filepath.Glob(filepath.Join(cfg.LogDir, "node[1-9]", "*.log"))
	if err != nil {
		return err
	}
	for _, path := range append(old, filepath.Join(cfg.LogDir, supervisorLog)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for id := 1; id <= cfg.all(); id++ {
		if err := os.MkdirAll(filepath.Join(cfg.LogDir, nodeName(id)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// spawn starts the supervisor as process 1 of new namespaces.
func (l *Lab) spawn(cfg Config, binary, runDir string, lock *os.File) error {
	logFile, err := os.OpenFile(filepath.Join(cfg.LogDir, supervisorLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	control, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer control.Close()
	cmd := exec.Command(binary, "supervise", "--dir", runDir)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// It inherits the lock and so holds it for life.
	cmd.ExtraFiles = []*os.File{control, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		// Not in our session: what the terminal sends (Ctrl-C, hang-up) is for this process to decide on.
		Setsid: true,
	}
	if cfg.Detach {
		w.Close()
	} else {
		cmd.Args = append(cmd.Args, "--control")
		l.control = w
	}
	if err := cmd.Start(); err != nil {
		w.Close()
		l.control = nil
		return fmt.Errorf("start the supervisor (this needs root): %w", err)
	}
	l.pid, l.ended = cmd.Process.Pid, make(chan struct{})
	go func() {
		_ = cmd.Wait() // why it ended is in its log
		close(l.ended)
	}()
	return os.WriteFile(filepath.Join(runDir, pidFile), []byte(strconv.Itoa(l.pid)), 0o644)
}

func (l *Lab) waitSupervisor(ctx context.Context) error {
	for {
		if err := l.call(ctx, http.MethodGet, "/status", nil, nil); err == nil {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-l.ended:
			b, _ := os.ReadFile(filepath.Join(l.logDir, supervisorLog))
			return fmt.Errorf("the supervisor ended:\n%s", b)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// base is the URL of the supervisor; the host is not used, the client always dials its socket.
const base = "http://lab"

func (l *Lab) connect(runDir string, nodes int) {
	socket := filepath.Join(runDir, supervisor.SocketFile)
	l.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // no idle connection that outlives a test and looks like a leak
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	for id := 1; id <= nodes; id++ {
		l.nodes = append(l.nodes, &Node{lab: l, id: id})
	}
	l.members = nodes
}

// Attach connects to a running lab by its name. Close ends it, whoever started it. ErrNotFound if it does
// not run.
func Attach(ctx context.Context, name string) (*Lab, error) {
	runDir := filepath.Join(RunDir, name)
	l := &Lab{name: name}
	l.connect(runDir, 0)
	var st wire.LabStatus
	if err := l.call(ctx, http.MethodGet, "/status", nil, &st); err != nil {
		message := fmt.Sprintf("no lab named %q is running on this machine", name)
		// Without a socket there was none; everything else is worth telling.
		if !errors.Is(err, os.ErrNotExist) {
			message += ": " + err.Error()
		}
		return nil, &labError{kind: ErrNotFound, message: message}
	}
	b, err := os.ReadFile(filepath.Join(runDir, pidFile))
	if err != nil {
		return nil, err
	}
	if l.pid, err = strconv.Atoi(string(b)); err != nil {
		return nil, err
	}
	l.logDir = st.LogDir
	l.connect(runDir, len(st.Nodes))
	return l, nil
}

// call asks the supervisor and turns its error codes into this package's errors.
func (l *Lab) call(ctx context.Context, method, path string, in, out any) error {
	return translate(wire.Call(ctx, l.client, method, base+path, in, out))
}

func translate(err error) error {
	re, ok := errors.AsType[*wire.RemoteError](err)
	if !ok {
		return err
	}
	for code, known := range map[string]error{
		wire.CodeNodeOff: ErrNodeOff, wire.CodeNotFound: ErrNotFound, wire.CodeState: ErrState, wire.CodeNotRunnable: ErrNotRunnable,
	} {
		if re.Code == code {
			return &labError{message: re.Message, kind: known}
		}
	}
	return err
}

// labError is one of the package's errors with the particulars.
type labError struct {
	message string
	kind    error
}

func (e *labError) Error() string { return e.message }
func (e *labError) Unwrap() error { return e.kind }
