package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/backend/local"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/internal/virtlockd"
)

// A virtlockd that executes its program again, and finds this one there, has its place
// taken: what it left is made a state, as if an earlier vmlockd had left it.

// virtlockdSuffix is what dpkg-divert adds to the name of a program that another one replaces.
const virtlockdSuffix = ".distrib"

// replaced is what of a virtlockd is not in a state.
type replaced struct {
	path       string // of its file
	entries    []locking.Entry
	lockspaces []string
	fds        []int // of its locks, which are this process's while they are open; empty with backend "local"
}

func virtlockdPath() string {
	root := os.Geteuid() == 0
	runtime := "/run"
	if !root {
		runtime = os.Getenv("XDG_RUNTIME_DIR")
	}
	return virtlockd.StatePath(runtime, root)
}

// fromVirtlockd makes a state of what a virtlockd has left for this process; nil if there is
// none. An error says that nothing was changed, and virtlockd could go on with it.
func fromVirtlockd(c config.Config, log *slog.Logger) (*state, error) {
	path := virtlockdPath()
	v, err := virtlockd.Read(path, os.Getpid())
	if errors.Is(err, virtlockd.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &state{Version: stateLocks, Listener: v.Listener, replaced: &replaced{path: path, lockspaces: v.Lockspaces}}
	if s.Socket, err = listeningAt(v.Listener); err != nil {
		return nil, fmt.Errorf("the socket of virtlockd: %w", err)
	}
	// Empty ones do no harm to a virtlockd that goes on.
	if err := os.MkdirAll(filepath.Join(c.RunDir, journalDir(c)), 0o700); err != nil {
		return nil, fmt.Errorf("make run_dir: %w", err)
	}
	if err := checkStart(c, true); err != nil {
		return nil, err
	}
	peers := make([]rpc.Peer, len(v.Clients))
	for n, client := range v.Clients {
		cred, err := unix.GetsockoptUcred(client.FD, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return nil, fmt.Errorf("client %d of virtlockd: %w", n+1, err)
		}
		peers[n] = rpc.Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
	}
	ids := make([]string, len(v.Locks))
	for n, l := range v.Locks {
		if ids[n], err = local.IDOf(l.FD); err != nil {
			return nil, fmt.Errorf("the lock of virtlockd on %q: %w", l.Ref.Name, err)
		}
	}
	starts := map[int32]uint64{}
	for _, pid := range v.Pids() {
		if starts[pid], err = startOf(pid); err != nil {
			return nil, fmt.Errorf("process %d, which virtlockd knows: %w", pid, err)
		}
	}

	// From here on there is no way back.
	s.listener = file(v.Listener, s.Socket)
	for n, client := range v.Clients {
		s.handovers = append(s.handovers, &rpc.Handover{Peer: peers[n], File: file(client.FD, "connection"), Sessions: []rpc.SessionState{
			lockprogram.Session(client.Restricted, client.Owner, starts[client.Owner.PID]),
		}})
	}
	if v.Admin >= 0 {
		unix.Close(v.Admin)
	}
	if c.Backend == config.BackendLocal {
		s.takeFiles(v, ids, log)
	} else {
		for _, l := range v.Locks {
			unix.CloseOnExec(l.FD)
			s.replaced.fds = append(s.replaced.fds, l.FD)
		}
	}
	now := time.Now()
	for n, l := range v.Locks {
		for _, pid := range l.Owners {
			s.replaced.entries = append(s.replaced.entries, locking.Entry{
				State: locking.EntryGranted, ID: ids[n], Ref: l.Ref, Mode: l.Mode, Autocreate: l.Autocreate,
				Owner: v.OwnerOf(pid), OwnerStart: starts[pid], Since: now,
			})
		}
	}
	log.Info("going on with what virtlockd has left", "locks", len(v.Locks), "clients", len(v.Clients), "lockspaces", len(v.Lockspaces))
	return s, nil
}

func file(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// listeningAt is the path of a listening socket.
func listeningAt(fd int) (string, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening != 1 {
		return "", fmt.Errorf("descriptor %d does not listen (%w)", fd, err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	u, ok := at.(*unix.SockaddrUnix)
	if !ok || !filepath.IsAbs(u.Name) {
		return "", fmt.Errorf("descriptor %d listens at no path", fd)
	}
	return u.Name, nil
}

// startOf is when a process started; 0 if there is none.
func startOf(pid int32) (uint64, error) {
	p, err := owner.Processes{}.Open(pid)
	if errors.Is(err, locking.ErrNoProcess) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return p.StartTime(), nil
}

// takeFiles makes the process's locks those of its open files, for the holder. A file that
// virtlockd had twice, by two names, is one here, in the stronger mode.
func (s *state) takeFiles(v *virtlockd.State, ids []string, log *slog.Logger) {
	modes := map[string]locking.Mode{}
	for n, l := range v.Locks {
		if mode, ok := modes[ids[n]]; !ok || mode == locking.Shared {
			modes[ids[n]] = l.Mode
		}
	}
	var list []holder.Kept
	var twice []int
	done := map[string]bool{}
	for n := range v.Locks {
		l := &v.Locks[n]
		l.Mode = modes[ids[n]]
		unix.CloseOnExec(l.FD)
		if done[ids[n]] {
			twice = append(twice, l.FD)
			log.Warn("virtlockd had granted one file under two names; here it is one disk, with the owners of both", "name", l.Ref.Name, "lockspace", l.Ref.Lockspace)
			continue
		}
		done[ids[n]] = true
		if err := virtlockd.TakeFile(l.FD, l.Mode); err != nil {
			// Restore finds out that it is not locked, and nobody gets the disk.
			log.Error("a lock of virtlockd could not be taken over as it was", "name", l.Ref.Name, "lockspace", l.Ref.Lockspace, "reason", err)
		}
		list = append(list, holder.Kept{FD: l.FD, Key: ids[n]})
	}
	// Closing one ends all record locks of its file, which are none by now.
	for _, fd := range twice {
		unix.Close(fd)
	}
	s.kept = keptLocks{local: holder.Gathered(list), look: true}
}

// note has the journal explain what is taken back.
func (r *replaced) note(c config.Config, j *journal.Journal, found *journal.Recovered) error {
	if r == nil {
		return nil
	}
	for _, space := range r.lockspaces {
		if err := j.AddLockspace(space); err != nil {
			return err
		}
		if !slices.Contains(found.Lockspaces, space) {
			found.Lockspaces = append(found.Lockspaces, space)
		}
	}
	if c.Backend != config.BackendLocal {
		return nil // they are asked for, as by clients
	}
	for _, e := range r.entries {
		seq, err := j.Intend(e)
		if err != nil {
			return err
		}
		e.Seq = seq
		found.Entries = append(found.Entries, e)
	}
	found.Fresh = false // it explains what the holder has
	return nil
}

// askPause is between two attempts to take a lock in the cluster.
const askPause = time.Second

// ask takes in the cluster what virtlockd had. What another host has is told, and no more: its
// virtual machine runs on both. As long as nothing can be taken it waits, up to the end of ctx: nobody
// is served meanwhile, and what virtlockd had keeps others of this host out.
func (r *replaced) ask(ctx context.Context, m *locking.Manager, log *slog.Logger) error {
	if r == nil || len(r.fds) == 0 {
		return nil
	}
	told := ""
	for _, e := range r.entries {
		o, err := m.RegisterAgain(e.Owner, e.OwnerStart)
		if err != nil {
			return err
		}
		for {
			err = o.Acquire(ctx, e.Ref, e.Mode, e.Autocreate)
			if f, ok := errors.AsType[*locking.Error](err); err == nil || !ok || f.Kind != locking.KindUnavailable || ctx.Err() != nil {
				break
			}
			if err.Error() != told {
				told = err.Error()
				log.Warn("what virtlockd had cannot be locked in the cluster yet; nobody is served until then", "name", e.Ref.Name, "reason", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(askPause):
			}
		}
		o.Close()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return fmt.Errorf("while what virtlockd had is locked in the cluster: %w", ctx.Err())
		default:
			log.Error("a virtual machine of this host uses a disk that cannot be locked for it: if another one holds it, end one of them", "event", "virtlockd-conflict",
				"name", e.Ref.Name, "lockspace", e.Ref.Lockspace, "mode", e.Mode.String(),
				"owner", e.Owner.Name, "uuid", locking.FormatUUID(e.Owner.UUID), "pid", e.Owner.PID, "reason", err)
		}
	}
	return nil
}

// done is called when all of it is served.
func (r *replaced) done(log *slog.Logger) {
	if r == nil {
		return
	}
	for _, fd := range r.fds {
		unix.Close(fd)
	}
	if err := os.Remove(r.path); err != nil {
		log.Warn("the file that virtlockd has left stays", "reason", err)
	}
	log.Info("vmlockd has taken the place of virtlockd", "event", "virtlockd-replaced", "locks", len(r.entries), "pid", os.Getpid())
}

// backToVirtlockd executes the virtlockd whose place this program was to take, if there is
// one and nothing of what it has left was changed.
func backToVirtlockd(why error) {
	if _, err := virtlockd.Read(virtlockdPath(), os.Getpid()); err != nil {
		return
	}
	program, err := os.Executable()
	if filepath.IsAbs(os.Args[0]) {
		program, err = os.Args[0], nil
	}
	if err != nil {
		return
	}
	fmt.Fprintf(os.Stderr, "vmlockd: it cannot take the place of virtlockd, which goes on: %v\n", why)
	err = syscall.Exec(program+virtlockdSuffix, os.Args, os.Environ())
	fmt.Fprintf(os.Stderr, "vmlockd: %s%s: %v; the locks of virtlockd end with this process\n", program, virtlockdSuffix, err)
}
