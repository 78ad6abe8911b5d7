// Package virtlockd reads what libvirt's own lock daemon leaves when it is told by SIGUSR1 to execute its program
// again in the same process (virLockDaemonPreExecRestart in libvirt's src/locking/lock_daemon.c): a file of JSON
// about its sockets, clients and locks, whose descriptors stay open. A program that was put in its place
// can go on with them.
//
// Nothing here changes anything: a state that was read is as good for virtlockd as before.
package virtlockd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// StatePath is where virtlockd leaves it: in runtime, which is /run, or for a user who is not root XDG_RUNTIME_DIR
// (virLockDaemonGetExecRestartMagic and virLockDaemonExecRestartStatePath there).
func StatePath(runtime string, root bool) string {
	const name = "virtlockd-restart-exec.json"
	if root {
		return filepath.Join(runtime, name)
	}
	return filepath.Join(runtime, "libvirt", name)
}

// maxState bounds what is read, in bytes. A virtlockd reads no more than 10 MB itself.
const maxState = 64 << 20

// State is what a virtlockd has left. The descriptors are open in this process.
type State struct {
	Listener   int   // socket for libvirt
	Admin      int   // socket for virt-admin; -1 if there is none
	Others     []int // connections of virt-admin
	Clients    []Client
	Lockspaces []string // directories, without the default lockspace
	Locks      []Lock
}

// Client is an open connection. Each has registered: a virtlockd with one that has not ends instead.
type Client struct {
	FD         int
	Restricted bool
	Owner      locking.Owner
}

// Lock is a resource that is locked, by fcntl(2) with F_SETLK on byte 0 of FD.
type Lock struct {
	Ref        locking.Ref
	FD         int
	Mode       locking.Mode
	Autocreate bool
	ID         string  // Handle.ID, for who finds it out; Parse does not
	Owners     []int32 // pids, more than one if it is shared; one that has shared it twice is there twice
}

// The JSON as virtlockd 9.0 writes it. Numbers that are missing are -1 where 0 means something.
type (
	document struct {
		Daemon struct {
			Servers map[string]server `json:"servers"`
		} `json:"daemon"`
		Default *lockspace  `json:"defaultLockspace"`
		Spaces  []lockspace `json:"lockspaces"`
		Magic   string      `json:"magic"`
	}
	server struct {
		Services []struct {
			Sockets []socket `json:"socks"`
		} `json:"services"`
		Clients []struct {
			Socket  socket  `json:"sock"`
			Private private `json:"privateData"`
		} `json:"clients"`
	}
	socket struct {
		FD *int `json:"fd"`
	}
	private struct {
		Restricted bool    `json:"restricted"`
		PID        *int64  `json:"ownerPid"`
		ID         uint32  `json:"ownerId"`
		Name       *string `json:"ownerName"`
		UUID       string  `json:"ownerUUID"`
	}
	lockspace struct {
		Directory string     `json:"directory"`
		Resources []resource `json:"resources"`
	}
	resource struct {
		Name   string  `json:"name"`
		FD     *int    `json:"fd"`
		Held   bool    `json:"lockHeld"`
		Flags  uint32  `json:"flags"`
		Owners []int64 `json:"owners"`
	}
)

// The flags of a resource (virLockSpaceAcquireFlags in src/util/virlockspace.h).
const (
	flagShared     = 1
	flagAutocreate = 2
)

// ErrNone: no virtlockd has left a state for this process.
var ErrNone = errors.New("no virtlockd has left a state for this process")

// Read reads the file at path. The error is ErrNone, wrapped, if there is none, or if it is for another process than
// pid, which is what became of one that did not get as far as reading it.
func Read(path string, pid int) (*State, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s)", ErrNone, path)
	}
	if err != nil {
		return nil, fmt.Errorf("the state of virtlockd: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("the state of virtlockd: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("the state of virtlockd in %s is no file that only this user can write", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("the state of virtlockd: %w", err)
	}
	s, err := Parse(text, pid)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Parse reads the text of a state for a process. What it does not understand is an error, as some lock may be lost
// with it; further members of objects are none.
func Parse(text []byte, pid int) (*State, error) {
	if len(text) > maxState {
		return nil, fmt.Errorf("the state of virtlockd is longer than %d bytes", maxState)
	}
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("the state of virtlockd: %w", err)
	}
	if d.Magic != strconv.Itoa(pid) {
		return nil, fmt.Errorf("%w: it is for process %q, and this is %d", ErrNone, d.Magic, pid)
	}
	s := &State{Listener: -1, Admin: -1}
	used := map[int]string{}
	take := func(fd *int, what string) (int, error) {
		if fd == nil || *fd < 0 {
			return 0, fmt.Errorf("the state of virtlockd has no descriptor for %s", what)
		}
		if other, ok := used[*fd]; ok {
			return 0, fmt.Errorf("the state of virtlockd has descriptor %d for %s and for %s", *fd, other, what)
		}
		used[*fd] = what
		return *fd, nil
	}
	for name, srv := range d.Daemon.Servers {
		to := map[string]*int{"virtlockd": &s.Listener, "admin": &s.Admin}[name]
		if to == nil {
			continue
		}
		for _, service := range srv.Services {
			for _, sock := range service.Sockets {
				fd, err := take(sock.FD, "the socket of "+name)
				if err != nil {
					return nil, err
				}
				if *to >= 0 {
					return nil, fmt.Errorf("the state of virtlockd has more than one socket of %s", name)
				}
				*to = fd
			}
		}
	}
	if s.Listener < 0 {
		return nil, errors.New("the state of virtlockd has no socket for libvirt")
	}
	for n, c := range d.Daemon.Servers["admin"].Clients {
		fd, err := take(c.Socket.FD, fmt.Sprintf("client %d of virt-admin", n+1))
		if err != nil {
			return nil, err
		}
		s.Others = append(s.Others, fd)
	}
	for n, c := range d.Daemon.Servers["virtlockd"].Clients {
		fd, err := take(c.Socket.FD, fmt.Sprintf("client %d", n+1))
		if err != nil {
			return nil, err
		}
		client, err := c.Private.client(fd)
		if err != nil {
			return nil, fmt.Errorf("the state of virtlockd, client %d: %w", n+1, err)
		}
		s.Clients = append(s.Clients, client)
	}
	spaces := d.Spaces
	if d.Default != nil {
		d.Default.Directory = ""
		spaces = append([]lockspace{*d.Default}, spaces...)
	}
	for n, space := range spaces {
		if n > 0 || d.Default == nil {
			if space.Directory == "" {
				return nil, errors.New("the state of virtlockd has a lockspace without a directory")
			}
			s.Lockspaces = append(s.Lockspaces, space.Directory)
		}
		for _, r := range space.Resources {
			if !r.Held {
				continue
			}
			fd, err := take(r.FD, fmt.Sprintf("the lock on %q", r.Name))
			if err != nil {
				return nil, err
			}
			l, err := r.lock(space.Directory, fd)
			if err != nil {
				return nil, fmt.Errorf("the state of virtlockd, the lock on %q: %w", r.Name, err)
			}
			s.Locks = append(s.Locks, l)
		}
	}
	return s, nil
}

func (p private) client(fd int) (Client, error) {
	c := Client{FD: fd, Restricted: p.Restricted}
	if p.PID == nil || *p.PID != int64(int32(*p.PID)) || p.Name == nil {
		return c, errors.New("its owner has no pid or no name")
	}
	uuid, err := locking.ParseUUID(p.UUID)
	if err != nil {
		return c, fmt.Errorf("its owner's uuid: %w", err)
	}
	c.Owner = locking.Owner{PID: int32(*p.PID), ID: p.ID, Name: *p.Name, UUID: uuid}
	return c, nil
}

func (r resource) lock(directory string, fd int) (Lock, error) {
	l := Lock{Ref: locking.Ref{Lockspace: directory, Name: r.Name}, FD: fd, Mode: locking.Exclusive, Autocreate: r.Flags&flagAutocreate != 0}
	if r.Flags&flagShared != 0 {
		l.Mode = locking.Shared
	}
	switch {
	case r.Name == "" || strings.ContainsRune(r.Name, 0):
		return l, errors.New("its name is empty or has a NUL byte")
	case r.Flags&^(flagShared|flagAutocreate) != 0:
		return l, fmt.Errorf("its flags are %#x, of which some are not known", r.Flags)
	case len(r.Owners) == 0:
		return l, errors.New("it is held and has no owner")
	case l.Mode == locking.Exclusive && len(r.Owners) > 1:
		return l, fmt.Errorf("it is exclusive and has %d owners", len(r.Owners))
	}
	for _, pid := range r.Owners {
		if pid != int64(int32(pid)) {
			return l, fmt.Errorf("its owner is process %d", pid)
		}
		l.Owners = append(l.Owners, int32(pid))
	}
	return l, nil
}

// FDs are all its descriptors.
func (s *State) FDs() []int {
	list := append([]int{s.Listener}, s.Others...)
	if s.Admin >= 0 {
		list = append(list, s.Admin)
	}
	for _, c := range s.Clients {
		list = append(list, c.FD)
	}
	for _, l := range s.Locks {
		list = append(list, l.FD)
	}
	return list
}

// Pids are those of all owners, of clients and of locks.
func (s *State) Pids() []int32 {
	var list []int32
	for _, c := range s.Clients {
		list = append(list, c.Owner.PID)
	}
	for _, l := range s.Locks {
		list = append(list, l.Owners...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// OwnerOf is what is known of a process that owns locks: what a client has registered for it, if there is one.
func (s *State) OwnerOf(pid int32) locking.Owner {
	for _, c := range s.Clients {
		if c.Owner.PID == pid {
			return c.Owner
		}
	}
	return locking.Owner{PID: pid}
}
