package identity

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxCalls bounds the look-ups under way. Each that hangs keeps a thread.
	maxCalls = 512
	// maxOfMount bounds those on one mount; more wait until one of them has ended. So one
	// server that hangs does not use up maxCalls, however many ask at once.
	maxOfMount = 64
	// maxStuck bounds, for each mount, those whose callers have gone away. More are
	// refused until one of them returns, so that nobody waits for nothing.
	maxStuck = 16
)

// Resolver finds out which disk a path leads to. Each look-up has a goroutine of
// its own, their number is bounded, and nobody waits for one longer than his context
// allows. One that hangs on a mount is not waited for by those who ask for others,
// also if a symbolic link or a loop device has led it there.
type Resolver struct {
	host  kernel
	rules []Rule
	slots chan struct{}

	mu     sync.Mutex        // guards what follows
	places map[string]*place // by mount point
}

// place is a mount on which look-ups are, or wait to be.
type place struct {
	mount string
	room  chan struct{} // has something for each that is there
	users int           // guarded by Resolver.mu, as stuck is: who has it in his hands
	stuck int           // those that nobody waits for
}

type outcome struct {
	id  Identity
	err error
}

func (r *Resolver) call(ctx context.Context, path string) (Identity, error) {
	if err := ctx.Err(); err != nil {
		return Identity{Path: path}, err
	}
	l := &lookup{host: r.host, rules: r.rules, resolver: r, ctx: ctx}
	if err := l.enter(r.mountOf(path)); err != nil {
		return Identity{Path: path}, err
	}
	done := make(chan outcome, 1)
	go func() {
		id, err := l.resolve(path)
		l.finish()
		done <- outcome{id, err}
	}()
	select {
	case o := <-done:
		return o.id, o.err
	case <-ctx.Done():
	}
	if !l.abandon() {
		o := <-done
		return o.id, o.err
	}
	return Identity{Path: path}, fmt.Errorf("its file system or device has not answered: %w", ctx.Err())
}

// enter takes a place on a mount, and one of maxCalls.
func (l *lookup) enter(mount string) error {
	r := l.resolver
	r.mu.Lock()
	p := r.places[mount]
	if p == nil {
		p = &place{mount: mount, room: make(chan struct{}, maxOfMount)}
		r.places[mount] = p
	}
	if p.stuck >= maxStuck {
		defer r.mu.Unlock()
		return fmt.Errorf("%d earlier look-ups below %s still hang in the kernel: is its file system's server reachable? (%w)", p.stuck, mount, unix.EAGAIN)
	}
	p.users++
	r.mu.Unlock()
	select {
	case p.room <- struct{}{}:
	case <-l.ctx.Done():
		r.forget(p)
		return fmt.Errorf("%d look-ups below %s have not been answered: is its file system's server reachable? (%w)", maxOfMount, mount, l.ctx.Err())
	}
	select {
	case r.slots <- struct{}{}:
	case <-l.ctx.Done():
		<-p.room
		r.forget(p)
		return fmt.Errorf("%d look-ups of paths hang in the kernel: %w", maxCalls, l.ctx.Err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.where = p; l.abandoned {
		p.stuck++ // until it leaves, at once
		return l.ctx.Err()
	}
	return nil
}

// leave gives back what enter has taken.
func (l *lookup) leave() {
	r := l.resolver
	r.mu.Lock()
	p := l.where
	l.where = nil
	if p != nil && l.abandoned {
		p.stuck--
	}
	r.mu.Unlock()
	if p != nil {
		<-r.slots
		<-p.room
		r.forget(p)
	}
}

func (r *Resolver) forget(p *place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(r.places, p.mount)
	}
}

func (l *lookup) finish() {
	l.leave()
	l.resolver.mu.Lock()
	defer l.resolver.mu.Unlock()
	l.finished = true
}

// abandon says that nobody waits any more, unless the look-up has ended.
func (l *lookup) abandon() bool {
	l.resolver.mu.Lock()
	defer l.resolver.mu.Unlock()
	if l.finished {
		return false
	}
	if l.abandoned = true; l.where != nil {
		l.where.stuck++
	}
	return true
}

// maxFollowed bounds the symbolic links that are followed, as the kernel does
// (MAXSYMLINKS in include/linux/namei.h).
const maxFollowed = 40

// look is the kernel's, counted where it may hang: the links on the way are followed
// one by one, and for what is behind one it takes a place on that mount. With an error,
// the node's path is where they led as far as is known.
func (l *lookup) look(path string) (node, error) {
	table, err := l.host.mounts(false)
	if err != nil {
		n, err := l.host.look(path) // what is wrong with mountinfo, others tell
		if err != nil {
			n = node{path: path}
		}
		return n, err
	}
	if err := l.move(table.above(path)); err != nil {
		return node{}, err
	}
	w := walk{rest: path}
	for w.links < maxFollowed && w.next(l.host) {
		if err := l.move(table.above(w.path())); err != nil {
			return node{}, err
		}
	}
	n, err := l.host.look(path)
	if err != nil {
		n = node{path: w.path()}
	}
	return n, err
}

// move is for a look-up that comes to another mount.
func (l *lookup) move(mount string) error {
	if l.where != nil && l.where.mount == mount { // only this goroutine changes it
		return nil
	}
	l.leave()
	return l.enter(mount)
}

// mountOf is the mount below which a path is, if no symbolic link leads elsewhere.
// It looks at no file. It need not be right: it is only by what calls are counted.
func (r *Resolver) mountOf(path string) string {
	t, err := r.host.mounts(false)
	if err != nil {
		return "/"
	}
	return t.above(path)
}
