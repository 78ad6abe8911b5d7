package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Process is a program that runs in the background of a node: one that Node.Start started, or one of the
// node's services. It is known by its name and may be started several times in a row.
type Process struct {
	node *Node
	name string
}

// ProcessStatus says how a process is.
type ProcessStatus = wire.ProcessStatus

// States of a process.
const (
	ProcessWaiting = wire.ProcessWaiting
	ProcessRunning = wire.ProcessRunning
	ProcessExited  = wire.ProcessExited
	ProcessFailed  = wire.ProcessFailed
)

// Start starts a program in the background, in a session of its own, and returns when it runs. Its output
// goes to the node's log of that name. ErrState if a process of that name runs already, ErrNotRunnable.
func (n *Node) Start(ctx context.Context, name, command string, args ...string) (*Process, error) {
	return n.StartEnv(ctx, name, nil, command, args...)
}

// StartEnv is Start with additions to the environment, as KEY=VALUE.
func (n *Node) StartEnv(ctx context.Context, name string, env []string, command string, args ...string) (*Process, error) {
	p := n.Service(name)
	s := wire.Service{Args: append([]string{command}, args...), Env: env}
	if err := p.call(ctx, http.MethodPut, "", s, nil); err != nil {
		return nil, err
	}
	return p, nil
}

// Service is the process of that name: ServiceCorosync, ServiceDLM, ServiceLock, ServiceLibvirt or one that
// Start started. Whether it exists shows when it is used.
func (n *Node) Service(name string) *Process { return &Process{node: n, name: name} }

// Processes are all processes that the node knows, services first.
func (n *Node) Processes(ctx context.Context) ([]ProcessStatus, error) {
	var list []ProcessStatus
	err := n.agent(ctx, http.MethodGet, "/processes", nil, &list)
	return list, err
}

func (p *Process) call(ctx context.Context, method, what string, in, out any) error {
	err := p.node.agent(ctx, method, "/processes/"+url.PathEscape(p.name)+what, in, out)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", p.node.Name(), p.name, err)
	}
	return nil
}

// Name is the process's name.
func (p *Process) Name() string { return p.name }

// Node is where it runs.
func (p *Process) Node() *Node { return p.node }

// Status says how it is.
func (p *Process) Status(ctx context.Context) (ProcessStatus, error) {
	var st ProcessStatus
	err := p.call(ctx, http.MethodGet, "", nil, &st)
	return st, err
}

// Start starts it again, with the same arguments. ErrState if it runs.
func (p *Process) Start(ctx context.Context) error {
	return p.call(ctx, http.MethodPost, "/start", nil, nil)
}

// alive returns an error if the process has ended or could not be started: then nothing good comes from it any more.
func (p *Process) alive(ctx context.Context) error {
	st, err := p.Status(ctx)
	if err == nil && (st.State == ProcessExited || st.State == ProcessFailed) {
		err = fmt.Errorf("%s: %s has %s, status %d %s", p.node.Name(), p.name, st.State, st.Status, st.Problem)
	}
	return err
}

// Signal sends it a signal. ErrState if it does not run.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	return p.call(ctx, http.MethodPost, "/signal", wire.SignalRequest{Signal: int(sig)}, nil)
}

// SignalGroup sends the signal to its whole process group.
func (p *Process) SignalGroup(ctx context.Context, sig syscall.Signal) error {
	return p.call(ctx, http.MethodPost, "/signal", wire.SignalRequest{Signal: int(sig), Group: true}, nil)
}

// Wait returns its status when it has ended.
func (p *Process) Wait(ctx context.Context) (ProcessStatus, error) {
	var st ProcessStatus
	err := p.call(ctx, http.MethodGet, "/wait", nil, &st)
	return st, err
}

// Kill ends it by SIGKILL and waits for its end. It is no error if it has ended already. One that has not been
// started yet cannot be ended: ErrState.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(ctx, syscall.SIGKILL); err != nil {
		st, e := p.Status(ctx)
		if !errors.Is(err, ErrState) || e != nil || st.State == ProcessWaiting {
			return errors.Join(err, e)
		}
	}
	_, err := p.Wait(ctx)
	return err
}

// stopPatience is what Stop gives a process after SIGTERM.
const stopPatience = 10 * time.Second

// Stop ends it by SIGTERM, or after ten seconds by SIGKILL, and waits for its end. It is no error if it has
// ended already.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(ctx, syscall.SIGTERM); err != nil {
		if errors.Is(err, ErrState) {
			return nil
		}
		return err
	}
	patient, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if _, err := p.Wait(patient); err == nil || ctx.Err() != nil || patient.Err() == nil {
		return err
	}
	return p.Kill(ctx)
}

// Log returns what it has written so far, in all its starts.
func (p *Process) Log(ctx context.Context) ([]byte, error) { return p.node.Log(ctx, p.name) }
