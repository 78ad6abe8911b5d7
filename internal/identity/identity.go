package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// Scope says for whom a name counts.
type Scope uint8

// The scopes.
const (
	Cluster Scope = iota // what is there may be used by other hosts; also in doubt
	Host                 // nobody but this host can get at it
)

func (s Scope) String() string {
	if s == Host {
		return "host"
	}
	return "cluster"
}

// Identity is what a path leads to.
type Identity struct {
	// Path is the path without symbolic links, and what rules are compared with. That
	// of a device is its name in the kernel, and of a device mapper's /dev/mapper/NAME:
	// equal for all its nodes.
	Path string
	// Type is the kind of a device, one of DeviceTypes, or a file's file system as
	// mountinfo(5) has it, or TypeCharacter or TypeUnknown; "" if nothing is there.
	Type  string
	Scope Scope
	// Name is equal for two paths to the same disk, on any host with scope Cluster, and
	// on this one with scope Host. It begins with / if and only if it is a path.
	Name string
	// Local is equal for two paths if and only if they lead to the same file or device
	// of this host at this moment; "" if that is not known.
	Local string
	// ByPath says that Name is made of the path, or of that in a share: the same disk has
	// another name under another path, here (until Local is compared) and on other hosts.
	ByPath bool
	// Doubt says that another host may have another name for the same disk, because
	// nothing better is known than its path or what this host calls it, and no rule says
	// what is meant.
	Doubt bool
	// Steps says how that was found out, for people, in order.
	Steps []string
}

func (id *Identity) step(format string, args ...any) {
	id.Steps = append(id.Steps, fmt.Sprintf(format, args...))
}

// byPath names it by its path, in doubt.
func (id *Identity) byPath(why string) {
	id.Scope, id.Name, id.ByPath, id.Doubt = Cluster, id.Path, true, true
	id.step("%s: the path is its name, in the whole cluster", why)
}

// ErrContradiction is wrapped by errors about a disk that has no one name.
var ErrContradiction = errors.New("it cannot be told which disk this is")

// maxPath is PATH_MAX of <linux/limits.h>, less the NUL.
const maxPath = 4095

// lookup is one call of Resolver.Identify.
type lookup struct {
	host     kernel
	rules    []Rule
	resolver *Resolver
	ctx      context.Context // ends when nobody waits for it any more

	// Guarded by resolver.mu.
	where               *place // nil while it waits for one
	finished, abandoned bool
}

// resolve does the work of Resolver.Identify, for as long as the kernel likes.
func (l *lookup) resolve(path string) (Identity, error) {
	id := Identity{Path: path}
	switch {
	case !strings.HasPrefix(path, "/"):
		id.byPath("not an absolute path, so it is no file of this host")
		id.ByPath, id.Doubt = false, false // and there is nothing to be decided about it
		return id, nil
	case len(path) > maxPath || strings.ContainsRune(path, 0):
		return id, fmt.Errorf("no file can have this path of %d bytes", len(path))
	}
	n, err := l.look(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return id, l.forbidden(&id, n, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		id.byPath(fmt.Sprintf("nothing can be found there (%v)", err))
		return id, nil
	case err != nil:
		return id, fmt.Errorf("look up: %w", err)
	}
	if n.path != path {
		id.step("%s leads to %s", path, n.path)
	}
	id.Path = n.path
	switch n.mode & unix.S_IFMT {
	case unix.S_IFBLK:
		err = l.device(&id, n)
	case unix.S_IFCHR:
		id.Type, id.Local = TypeCharacter, fmt.Sprintf("character device %s", n.rdev)
		id.byPath("a character device")
	default:
		err = l.file(&id, n, 0)
	}
	switch {
	case errors.Is(err, ErrContradiction):
		return id, l.overrule(&id, n, err)
	case err != nil:
		return id, err
	}
	return id, l.applyRules(&id, n)
}

// forbidden is for a path at which this process may not look, as with a server of NFS
// that takes root for nobody (root_squash): what n has of it is only where links led.
func (l *lookup) forbidden(id *Identity, n node, why error) error {
	if n.path != id.Path {
		id.step("%s leads to %s, as far as can be seen", id.Path, n.path)
		id.Path = n.path
	}
	table, err := l.host.mounts(false)
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	id.Type = TypeUnknown
	if m := table.over(id.Path); m != nil {
		id.Type = m.fs
		id.step("%s is on the %s file system of %s, mounted at %s", id.Path, m.fs, m.source, m.point)
	}
	id.byPath(fmt.Sprintf("vmlockd may not look at it (%v)", why))
	return l.applyRules(id, n)
}

// number is a device number.
type number struct{ major, minor uint32 }

func (d number) String() string { return fmt.Sprintf("%d:%d", d.major, d.minor) }

// node is what is found at the end of a path.
type node struct {
	path  string // without symbolic links
	mode  uint32
	dev   number // where it is
	rdev  number // which device it is
	ino   uint64
	mount uint64 // number of its mount in mountinfo; 0 if the kernel does not tell
}

// kernel is what this package asks of the host, so that tests can give captured
// answers.
type kernel interface {
	// look follows path, and opens nothing that it leads to.
	look(path string) (node, error)
	// link is where the symbolic link at path leads to, which may be relative; "" if
	// there is none.
	link(path string) string
	// mounts is the table of mounts as it is now; with again it is read for sure.
	mounts(again bool) (*mountTable, error)
	// fsid asks the file system that has path (statfs(2)).
	fsid(path string) (uint64, error)
	// xattr is an extended attribute of path (getxattr(2)); "" if its file system or
	// this kernel has none of that name.
	xattr(path, name string) (string, error)
	// at is where to find what has this path in /sys, /proc or /dev: the path itself on a
	// real host. It is asked before each file there is read, each directory listed, each
	// link followed, and whatever is looked for.
	at(path string) string
}

// Options are what a Resolver works with.
type Options struct {
	// Rules come before what is found out; the first that matches counts.
	Rules []Rule
}

// New makes a Resolver of this host.
func New(o Options) *Resolver { return newResolver(&host, o) }

// host is kept for as long as the process: it has a descriptor open.
var host thisHost

func newResolver(h kernel, o Options) *Resolver {
	return &Resolver{host: h, rules: o.Rules, slots: make(chan struct{}, maxCalls), places: map[string]*place{}}
}

// Identify finds out what path leads to. It returns soon after ctx has ended.
//
// A path that leads to nothing, or to where this process may not look, is named by
// itself; a name that is no absolute path, too. Any other failure, ctx's end among
// them, is an error: nothing is to be granted then.
func (r *Resolver) Identify(ctx context.Context, path string) (Identity, error) {
	return r.call(ctx, path)
}
