package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// releaseTimeout bounds how long run waits, when its command has ended, until the
// locks can be had by others. The daemon frees them at the command's death
// anyway.
const releaseTimeout = 10 * time.Second

const runHelp = `Hold locks while a command runs, as a virtual machine holds those of its disks:
exclusively, or with --shared together with others who share. If one of them
cannot be had at once the command is not started, and the refusal says who has it.

The command itself is the owner of the locks. They last exactly as long as its
process: if vmlockctl is killed meanwhile the command keeps them, and if the
command is killed they are free. Processes that the command leaves behind are not
protected. Signals are passed on, and the command's exit status is that of run.

PATH has to be what libvirt uses for the disk. If file_lockspace_dir is set in
qemu-lockd.conf, give that directory with --lockspace.`

type runFlags struct {
	shared    bool
	name      string
	lockspace string
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:     "run [flags] PATH... -- COMMAND [ARGUMENT...]",
		Short:   "Hold locks while a command runs",
		Long:    runHelp + "\n\n" + exitHelp(runExits),
		Example: "  vmlockctl run /srv/vm/web.img -- qemu-img check /srv/vm/web.img",
	}
	cmd.Flags().BoolVar(&f.shared, "shared", false, "share the locks with others who share")
	cmd.Flags().StringVar(&f.name, "name", "", "the owner's `name`, as others see it; default: that of the command")
	cmd.Flags().StringVar(&f.lockspace, "lockspace", "", "libvirt's file_lockspace_dir, a `path`")
	cmd.Run = func(cmd *cobra.Command, args []string) {
		status, err := a.runLocked(f, cmd.ArgsLenAtDash(), args)
		a.status = status
		if err == nil {
			return
		}
		out := a.Out
		a.Out = a.Err // stdout is the command's
		a.fail(err)
		a.Out = out
		if a.status < runOffset {
			a.status += runOffset
		}
	}
	return cmd
}

// runLocked returns the command's exit status, or an error if it was not started.
func (a *app) runLocked(f runFlags, dash int, args []string) (int, error) {
	if dash < 1 || dash == len(args) {
		return 0, usage("give one PATH or more, then --, then the command")
	}
	paths, command := args[:dash], args[dash:]
	path, err := exec.LookPath(command[0])
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return 0, failed(exitNoCommand, "no_command", "%s: command not found", command[0])
	case err != nil:
		return 0, failed(exitCannotRun, "cannot_run", "%v", err)
	}
	refs, err := refsOf(paths, f.lockspace)
	if err != nil {
		return 0, err
	}
	signals := catchSignals()
	defer signals.stop()
	c, err := a.client()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := signals.cancels(cancel)
	defer stop()
	st, err := ask(ctx, c.Status)
	if err != nil {
		return 0, err
	}
	child, err := startShim(path, command, a.Streams)
	if err != nil {
		return 0, failed(exitFailed, control.CodeFailed, "start a process for the command: %v", err)
	}
	name := f.name
	if name == "" {
		name = filepath.Base(command[0])
	}
	h := &holding{socket: st.Socket, refs: refs, owner: locking.Owner{PID: int32(child.pid()), ID: 1, Name: name}}
	_, _ = rand.Read(h.owner.UUID[:]) // never fails
	h.owner.UUID[6], h.owner.UUID[8] = h.owner.UUID[6]&0x0f|0x40, h.owner.UUID[8]&0x3f|0x80
	defer h.close()
	if err := h.acquire(ctx, f.shared, f.lockspace); err != nil {
		child.abandon()
		return 0, err
	}
	if stopped := stop(); stopped {
		h.release(a)
		child.abandon()
		return 0, context.Canceled
	}
	status, err := child.runs(signals)
	h.release(a)
	return status, err
}

// refsOf are the resources that libvirt would ask for.
func refsOf(paths []string, lockspace string) ([]locking.Ref, error) {
	var refs []locking.Ref
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil || p == "" {
			return nil, usage("%q cannot be a disk's path", p)
		}
		ref := locking.Ref{Name: abs}
		if lockspace != "" {
			ref = locking.Ref{Lockspace: lockspace, Name: control.HashedName(abs)}
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// holding is the locks of a command.
type holding struct {
	socket string
	refs   []locking.Ref
	owner  locking.Owner
	client *lockprogram.Client // nil if there is none
	held   []locking.Ref
}

func (h *holding) connect(ctx context.Context) error {
	c, err := lockprogram.Dial(ctx, h.socket)
	if err != nil {
		return &control.Error{Code: control.CodeUnavailable, Message: fmt.Sprintf("vmlockd does not answer on %s: %v", h.socket, err)}
	}
	h.client = c
	return c.Register(ctx, h.owner)
}

func (h *holding) close() {
	if h.client != nil {
		h.client.Close()
		h.client = nil
	}
}

// acquire gets all locks, or none.
func (h *holding) acquire(ctx context.Context, shared bool, lockspace string) error {
	err := h.connect(ctx)
	if err == nil && lockspace != "" {
		err = h.client.CreateLockspace(ctx, lockspace)
	}
	flags := uint32(0)
	if shared {
		flags |= lockprogram.FlagShared
	}
	if lockspace != "" {
		flags |= lockprogram.FlagAutocreate
	}
	for i := 0; err == nil && i < len(h.refs); i++ {
		if err = h.client.Acquire(ctx, h.refs[i], flags); err == nil {
			h.held = append(h.held, h.refs[i])
		}
	}
	if err == nil {
		return nil
	}
	_ = h.giveBack(context.Background()) // or they end with the process
	var refused *rpc.Error
	switch {
	case errors.As(err, &refused):
		return failed(exitRefused, "refused", "%s", refused.Error())
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, rpc.ErrBroken):
		return &control.Error{Code: control.CodeUnavailable, Message: fmt.Sprintf("vmlockd went away before it answered: %v", err)}
	}
	return err
}

// release gives the locks back, so that whoever comes next gets them at once.
func (h *holding) release(a *app) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	err := h.giveBack(ctx)
	if errors.Is(err, rpc.ErrBroken) {
		// The daemon was started again: it freed them, or is about to.
		h.close()
		if err = h.connect(ctx); err == nil {
			err = h.giveBack(ctx)
		}
	}
	if err != nil {
		fmt.Fprintf(a.Err, "vmlockctl: the command has ended, and its locks are given back later: %s\n", clean(err.Error()))
	}
}

func (h *holding) giveBack(ctx context.Context) (first error) {
	if h.client == nil {
		return nil
	}
	for _, ref := range h.held {
		err := h.client.Release(ctx, ref)
		var e *rpc.Error
		if errors.As(err, &e) && (e.Code == rpc.CodeResourceBusy || e.Code == rpc.CodeInternal) {
			err = nil // the daemon has seen the owner's death
		}
		if first == nil {
			first = err
		}
	}
	return first
}
