package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	path    string // of its file
	left    *virtlockd.State
	entries []locking.Entry
	files   bool // the locks are those of open files now, as backend "local" has them
	// open is closed when all is served: what is of no use then, but for a virtlockd that goes on.
	open []int
}

func virtlockdPath() string {
	root := os.Geteuid() == 0
	runtime := "/run"
	if !root {
		runtime = os.Getenv("XDG_RUNTIME_DIR")
	}
	return virtlockd.StatePath(runtime, root)
}

// ReplacesVirtlockd reports whether a virtlockd has executed this program, so that it is to go on in
// this process.
func ReplacesVirtlockd() bool {
	_, err := virtlockd.Read(virtlockdPath(), os.Getpid())
	return err == nil
}

// fromVirtlockd makes a state of what a virtlockd has left for this process; nil if there is
// none. An error says that nothing was changed, and virtlockd could go on with it.
func fromVirtlockd(c config.Config, log *slog.Logger) (*state, error) {
	path := virtlockdPath()
	v, err := virtlockd.Read(path, os.Getpid())
	if errors.Is(err, virtlockd.ErrNone) {
		return nil, nil
	}
	if err != nil && !inheritsListener() {
		log.Warn("what a virtlockd has left cannot be read, and is not for this process", "reason", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &replaced{path: path, left: v}
	s := &state{Version: stateLocks, Listener: v.Listener, replaced: r}
	if s.Socket, err = listeningAt(v.Listener, c.Socket); err != nil {
		return nil, fmt.Errorf("the socket of virtlockd: %w", err)
	}
	if err := canReplace(c, s.Socket, log); err != nil {
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
	starts := map[int32]uint64{}
	for _, pid := range v.Pids() {
		if starts[pid], err = startOf(pid); err != nil {
			return nil, fmt.Errorf("process %d, which virtlockd knows: %w", pid, err)
		}
	}
	admin := ""
	if v.Admin >= 0 {
		if admin, err = listeningAt(v.Admin, c.AdminPath()); err != nil {
			return nil, fmt.Errorf("the admin socket of virtlockd: %w", err)
		}
	}
	if c.Backend == config.BackendLocal {
		if s.kept, err = r.takeFiles(log); err != nil {
			return nil, err
		}
		r.files = true
	}
	for _, fd := range v.FDs() {
		unix.CloseOnExec(fd)
	}
	now := time.Now()
	for _, l := range v.Locks {
		for _, pid := range l.Owners {
			r.entries = append(r.entries, locking.Entry{
				State: locking.EntryGranted, Ref: l.Ref, Mode: l.Mode, Autocreate: l.Autocreate,
				Owner: v.OwnerOf(pid), OwnerStart: starts[pid], Since: now, ID: l.ID,
			})
		}
		if c.Backend != config.BackendLocal {
			r.open = append(r.open, l.FD)
		}
	}
	r.open = append(r.open, v.Others...)
	if v.Admin >= 0 {
		s.VirtAdmin = &adminState{Socket: admin, listener: os.NewFile(uintptr(v.Admin), admin)}
	}
	s.listener = os.NewFile(uintptr(v.Listener), s.Socket)
	for n, client := range v.Clients {
		s.handovers = append(s.handovers, &rpc.Handover{Peer: peers[n], File: os.NewFile(uintptr(client.FD), "connection"), Sessions: []rpc.SessionState{
			lockprogram.Session(client.Restricted, client.Owner, starts[client.Owner.PID]),
		}})
	}
	log.Info("going on with what virtlockd has left", "locks", len(v.Locks), "clients", len(v.Clients), "lockspaces", len(v.Lockspaces))
	return s, nil
}

// inheritsListener reports whether this process has a listening unix socket, which a
// virtlockd would have left.
func inheritsListener() bool {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return true
	}
	for _, e := range list {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on == 1 {
			return true
		}
	}
	return false
}

// canReplace is nil if a start with this configuration would succeed, as far as that can be
// told. It takes nothing from a virtlockd.
func canReplace(c config.Config, socket string, log *slog.Logger) error {
	dir := filepath.Join(c.RunDir, journalDir(c))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make run_dir: %w", err)
	}
	if err := checkStart(c, true); err != nil {
		return err
	}
	boot, err := journal.BootID()
	if err != nil {
		return err
	}
	if err := noOtherLocks(c, boot); err != nil {
		return err
	}
	j, found, err := journal.Open(dir, boot)
	if err != nil {
		return err
	}
	if err := j.Close(); err != nil {
		return err
	}
	if n := len(found.Entries); n > 0 || found.Damage != nil && found.Damage.Unknown {
		return fmt.Errorf("an earlier vmlockd has left %d locks in %s (damage: %v): start that one and let it release them first", n, dir, found.Damage)
	}
	if socket != c.Socket {
		if err := rpc.CanListen(c.Socket); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
	}
	if c.Backend != config.BackendLocal {
		return nil
	}
	// It is started now if it is not there, and ends soon if it gets nothing.
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	k, err := holder.Connect(ctx, holder.Options{Socket: c.HolderSocket(), Log: log, Wait: true})
	if err != nil {
		return fmt.Errorf("the process that keeps locks across restarts: %w", err)
	}
	defer k.Close()
	for range k.Taken() {
		return errors.New("an earlier vmlockd has left files that are kept locked, of which no record tells: see 'vmlockctl settle'")
	}
	return nil
}

// listeningAt is the path of a listening socket; configured if that leads to the same one.
func listeningAt(fd int, configured string) (string, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return "", fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if listening != 1 {
		return "", fmt.Errorf("descriptor %d does not listen", fd)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	u, ok := at.(*unix.SockaddrUnix)
	if !ok || !filepath.IsAbs(u.Name) {
		return "", fmt.Errorf("descriptor %d listens at no path", fd)
	}
	a, err1 := os.Stat(u.Name)
	b, err2 := os.Stat(configured)
	if err1 == nil && err2 == nil && os.SameFile(a, b) { // by way of /var/run, for example
		return configured, nil
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

// ownPatience is how long a program that has shared a file in the wrong moment is waited for.
const ownPatience = 2 * time.Second

// takeFiles makes the process's locks those of its open files, for the holder. A file that
// virtlockd had twice, by two names, is one here, in the stronger mode. After an error all is
// as it was.
func (r *replaced) takeFiles(log *slog.Logger) (keptLocks, error) {
	locks := r.left.Locks
	first := map[string]*virtlockd.Lock{}
	var list []holder.Kept
	var twice []int
	for n := range locks {
		l := &locks[n]
		var err error
		if l.ID, err = local.IDOf(l.FD); err != nil {
			return keptLocks{}, fmt.Errorf("the lock of virtlockd on %q: %w", l.Ref.Name, err)
		}
		f := first[l.ID]
		if f == nil {
			first[l.ID] = l
			continue
		}
		log.Warn("virtlockd had granted one file under two names; here it is one disk, with the owners of both",
			"name", l.Ref.Name, "other", f.Ref.Name, "lockspace", l.Ref.Lockspace)
		twice = append(twice, l.FD)
		if l.Mode == locking.Exclusive {
			f.Mode = locking.Exclusive
		}
	}
	for n := range locks {
		locks[n].Mode = first[locks[n].ID].Mode
	}
	var shared []*virtlockd.Lock
	for _, l := range first {
		if err := virtlockd.Share(l.FD, l.Mode == locking.Exclusive); err != nil {
			for _, l := range shared {
				err = errors.Join(err, virtlockd.Unshare(l.FD, l.Mode == locking.Exclusive))
			}
			return keptLocks{}, fmt.Errorf("the lock of virtlockd on %q: %w", l.Ref.Name, err)
		}
		shared = append(shared, l)
	}
	for _, l := range first {
		if err := own(l); err != nil {
			// The descriptor stays open, so that others can share the file at most. The holder does not
			// get it, so that Restore finds it lost, and nobody here gets the disk.
			log.Error("a lock of virtlockd could not be taken over as it was", "name", l.Ref.Name, "lockspace", l.Ref.Lockspace, "reason", err)
			continue
		}
		list = append(list, holder.Kept{FD: l.FD, Key: l.ID})
	}
	r.open = append(r.open, twice...)
	return keptLocks{local: holder.Gathered(list), look: true}, nil
}

// own tries again and again, as the kernel tells nobody when the lock of another program ends: waiting in it
// (F_OFD_SETLKW) has no bound.
func own(l *virtlockd.Lock) error {
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := virtlockd.Own(l.FD, l.Mode == locking.Exclusive)
		if !errors.Is(err, virtlockd.ErrOvertaken) || time.Since(begin) > ownPatience {
			return err
		}
	}
}

// noteFiles has the journal explain what the holder gets.
func (r *replaced) noteFiles(c config.Config, j *journal.Journal, found *journal.Recovered) error {
	if r == nil || c.Backend != config.BackendLocal {
		return nil
	}
	return r.note(j, found)
}

func (r *replaced) note(j *journal.Journal, found *journal.Recovered) (err error) {
	// What is held is virtlockd's: canReplace has seen that an earlier vmlockd has left nothing.
	if found.Fresh {
		if err := j.Settled(); err != nil {
			return err
		}
		found.Fresh = false
	}
	for _, space := range r.left.Lockspaces {
		if err := j.AddLockspace(space); err != nil {
			return err
		}
	}
	found.Lockspaces = append(found.Lockspaces, r.left.Lockspaces...)
	var noted []uint64
	for _, e := range r.entries {
		if e.Seq, err = j.Intend(e); err != nil {
			for _, seq := range noted {
				_ = j.Forget(seq)
			}
			return err
		}
		noted = append(noted, e.Seq)
		found.Entries = append(found.Entries, e)
	}
	return nil
}

// done is called when all of it is served.
func (r *replaced) done(log *slog.Logger) {
	if r == nil {
		return
	}
	for _, fd := range r.open {
		unix.Close(fd)
	}
	if err := os.Remove(r.path); err != nil {
		log.Warn("the file that virtlockd has left stays", "reason", err)
	}
	log.Info("vmlockd has taken the place of virtlockd", "event", "virtlockd-replaced", "locks", len(r.left.Locks), "pid", os.Getpid())
}

// virtlockdGoesOn has it do so after a start that failed, if what it has left is as it was, or can
// be made so. It returns if not. With backend "local" that is over once the backend has the files; then
// the holder keeps them for the next start.
func (s *state) virtlockdGoesOn(why error) {
	r := s.virtlockd()
	if r == nil || r.files && s.kept.local == nil {
		return
	}
	for _, l := range r.left.Locks {
		if !r.files {
			break // they are the process's
		}
		exclusive := l.Mode == locking.Exclusive
		if err := virtlockd.GiveBack(l.FD, exclusive); err != nil {
			fmt.Fprintf(os.Stderr, "vmlockd: the lock on %q for virtlockd: %v\n", l.Ref.Name, err)
		}
	}
	for _, fd := range r.left.FDs() {
		_ = cloexec(fd, false)
	}
	backToVirtlockd(why)
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
