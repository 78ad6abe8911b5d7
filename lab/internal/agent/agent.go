package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Serve is the agent: it reads the node's configuration from config, starts the services and answers
// on the command network until the node ends. There is no authentication: the network exists only inside the
// lab's own network namespace, and holds only the lab's nodes and its supervisor.
func Serve(config io.Reader) error {
	var cfg wire.NodeConfig
	if err := json.NewDecoder(config).Decode(&cfg); err != nil {
		return fmt.Errorf("node configuration: %w", err)
	}
	a := &agent{env: environment(cfg.Env), procs: newProcesses(environment(cfg.Env))}
	for _, s := range cfg.Services {
		a.procs.add(s)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", wire.Handle(func(*http.Request) (any, error) { return nil, nil }))
	mux.HandleFunc("POST /exec", wire.Handle(a.exec))
	mux.HandleFunc("GET /file", a.readFile)
	mux.HandleFunc("PUT /file", wire.Handle(a.writeFile))
	mux.HandleFunc("GET /dial", a.dial)
	mux.HandleFunc("GET /processes", wire.Handle(func(*http.Request) (any, error) { return a.procs.list(), nil }))
	mux.HandleFunc("PUT /processes/{name}", wire.Handle(a.startNew))
	mux.HandleFunc("GET /processes/{name}", wire.Handle(a.status))
	mux.HandleFunc("POST /processes/{name}/start", wire.Handle(a.startAgain))
	mux.HandleFunc("POST /processes/{name}/signal", wire.Handle(a.signal))
	mux.HandleFunc("GET /processes/{name}/wait", wire.Handle(a.wait))
	srv := &http.Server{
		Addr:              wire.CommandAddr(cfg.ID) + ":" + strconv.Itoa(wire.AgentPort),
		Handler:           mux,
		ReadHeaderTimeout: time.Minute,
	}
	return srv.ListenAndServe()
}

type agent struct {
	env   []string
	procs *processes
}

// exec runs a program to its end, or to the end of the request, whichever is first; then the
// program's whole process group is killed, so that a cancelled shell leaves no children behind.
func (a *agent) exec(r *http.Request) (any, error) {
	var req wire.ExecRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	if len(req.Args) == 0 {
		return nil, wire.Errorf(wire.CodeNotRunnable, "no command")
	}
	path, err := lookPath(req.Args[0])
	if err != nil {
		return nil, wire.Errorf(wire.CodeNotRunnable, "%v", err)
	}
	cmd := exec.CommandContext(r.Context(), path, req.Args[1:]...)
	cmd.Args[0] = req.Args[0]
	cmd.Dir = req.Dir
	cmd.Env = append(a.env[:len(a.env):len(a.env)], req.Env...)
	if req.Stdin != nil {
		cmd.Stdin = bytes.NewReader(req.Stdin)
	}
	stdout, stderr := &bounded{max: req.MaxOutput}, &bounded{max: req.MaxOutput}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A daemon that the program left behind may hold the pipes for ever; what it says then is not this command's output.
	cmd.WaitDelay = time.Second
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, wire.Errorf(wire.CodeNotRunnable, "%v", err)
	}
	err = cmd.Wait()
	if r.Context().Err() != nil {
		return nil, context.Cause(r.Context())
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, err
	}
	return wire.ExecResult{
		Stdout: stdout.buf.Bytes(), Stderr: stderr.buf.Bytes(),
		Status:    exitStatus(cmd.ProcessState),
		Truncated: stdout.cut || stderr.cut,
		Took:      time.Since(start),
	}, nil
}

// exitStatus follows the shell: 128 plus the signal for a process that a signal ended.
func exitStatus(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// lookPath looks in the node's PATH; the agent's own environment has the same.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, errors.Unwrap(err))
	}
	return path, nil
}

// bounded keeps the first max bytes and swallows the rest, so that a program that floods its output
// neither blocks nor fills the node's memory.
type bounded struct {
	buf bytes.Buffer
	max int
	cut bool
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := p
	if room := b.max - b.buf.Len(); len(p) > room {
		keep, b.cut = p[:max(room, 0)], true
	}
	b.buf.Write(keep)
	return len(p), nil
}

func (a *agent) readFile(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Query().Get("path")
	f, err := os.Open(path)
	if err != nil {
		wire.WriteError(w, fileError(err))
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		wire.WriteError(w, wire.Errorf(wire.CodeState, "%s is a directory", path))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.Copy(w, f)
}

// writeFile replaces a file in one step, so that a reader in the node never sees half of it.
func (a *agent) writeFile(r *http.Request) (any, error) {
	path := r.URL.Query().Get("path")
	mode, err := strconv.ParseUint(r.URL.Query().Get("mode"), 8, 12)
	if err != nil {
		return nil, fmt.Errorf("mode: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// Not a rename for what is no regular file: a device must stay a device.
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, fileError(err)
		}
		_, err = io.Copy(f, r.Body)
		return nil, errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".lab-*")
	if err != nil {
		return nil, fileError(err)
	}
	_, err = io.Copy(f, r.Body)
	err = errors.Join(err, f.Chmod(fs.FileMode(mode)), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return nil, fileError(err)
	}
	return nil, nil
}

func fileError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return wire.Errorf(wire.CodeNotFound, "%v", err)
	}
	return err
}

func (a *agent) startNew(r *http.Request) (any, error) {
	var s wire.Service
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		return nil, err
	}
	s.Name = r.PathValue("name")
	return a.procs.start(&s, s.Name)
}

func (a *agent) startAgain(r *http.Request) (any, error) {
	return a.procs.start(nil, r.PathValue("name"))
}

func (a *agent) status(r *http.Request) (any, error) {
	p, err := a.procs.get(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return p.status(), nil
}

func (a *agent) signal(r *http.Request) (any, error) {
	var req wire.SignalRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	p, err := a.procs.get(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return nil, p.signal(syscall.Signal(req.Signal), req.Group)
}

func (a *agent) wait(r *http.Request) (any, error) {
	p, err := a.procs.get(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return p.wait(r.Context())
}
