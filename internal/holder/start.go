package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/failpoint"
)

// maxTries bounds how often a connection is tried again because the holder ended
// in between, as it does when nobody needs it.
const maxTries = 5

// starter finds or makes the holder of a socket.
type starter struct {
	socket  string
	program string // instead of this program, for tests
	child   int    // pid of the last holder that was started
}

// connect connects to the running holder, or to a new one.
func (o *starter) connect(ctx context.Context) (*link, helloReply, error) {
	var last error
	for range maxTries {
		if err := ctx.Err(); err != nil {
			return nil, helloReply{}, errors.Join(err, last)
		}
		fd, err := dial(o.socket)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			fd, err = o.start(ctx)
		}
		if err != nil {
			return nil, helloReply{}, err
		}
		l, hello, err := greet(ctx, fd)
		if err == nil {
			return l, hello, nil
		}
		if !ended(err) {
			return nil, helloReply{}, err
		}
		last = fmt.Errorf("the holder closed the connection: %w", err)
	}
	return nil, helloReply{}, last
}

func ended(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENOTCONN)
}

// dial connects. The holder must run as this user: its socket is where only this
// user may create files, but a directory with wrong permissions must not be enough
// to get the descriptors of every disk.
func dial(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to the holder at %s: %w", path, err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err == nil && int(cred.Uid) != unix.Geteuid() {
		err = fmt.Errorf("%s belongs to user %d, not to user %d", path, cred.Uid, unix.Geteuid())
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	prepare(fd)
	return fd, nil
}

// greet says hello on a new connection, which it takes over.
func greet(ctx context.Context, fd int) (*link, helloReply, error) {
	l, err := newLink(fd)
	if err != nil {
		return nil, helloReply{}, err
	}
	defer l.until(ctx)()
	request := helloRequest{version: version}.append(header{op: opHello}.append(nil))
	h, body, p, err := l.call(0, request, opHello)
	var hello helloReply
	if err == nil {
		closeAll(p.fds)
		hello, err = decodeHelloReply(body)
	}
	switch {
	case err != nil:
	case h.errno == unix.EBUSY:
		err = fmt.Errorf("%w (process %d)", ErrConnected, hello.pid)
	case h.errno != 0:
		err = h.errno
	}
	if err != nil {
		l.file.Close()
		return nil, helloReply{}, withContext(ctx, err)
	}
	l.pid, l.limit = int(hello.pid), int(hello.limit)
	return l, hello, nil
}

// until makes ctx end what waits on the link, until the function it returns is called.
func (l *link) until(ctx context.Context) func() {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = l.file.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !stop() {
			<-done
		}
		_ = l.file.SetDeadline(time.Time{})
	}
}

func withContext(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("the holder does not answer: %w", ctx.Err())
	}
	return err
}

// start starts a holder and connects to it. Of several processes that do this at
// the same time one starts it.
func (o *starter) start(ctx context.Context) (int, error) {
	unlock, err := lockFile(ctx, o.socket+".lock")
	if err != nil {
		return -1, fmt.Errorf("start a holder: %w", err)
	}
	defer unlock()
	fd, err := dial(o.socket)
	if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		return fd, err
	}
	if err := o.spawn(); err != nil {
		return -1, fmt.Errorf("start a holder: %w", err)
	}
	return dial(o.socket)
}

// The points at which a crash test kills the daemon.
var (
	spawnBefore = failpoint.New("holder.spawn.before")
	spawnAfter  = failpoint.New("holder.spawn.after")
)

// spawn listens on the socket and starts the process that serves it. The
// connections of the time until it does wait in the backlog.
func (o *starter) spawn() error {
	spawnBefore.Pass()
	if err := unix.Unlink(o.socket); err != nil && err != unix.ENOENT {
		return fmt.Errorf("unlink %s: %w", o.socket, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	listener := os.NewFile(uintptr(fd), o.socket)
	defer listener.Close()
	// Linux gives the file of a socket the mode of the socket itself, so that
	// there is no moment with other permissions.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: o.socket}); err != nil {
		return fmt.Errorf("bind %s: %w", o.socket, err)
	}
	if err := unix.Listen(fd, maxConns); err != nil {
		return fmt.Errorf("listen on %s: %w", o.socket, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	// The standard descriptors must not be the daemon's: systemd and shells wait
	// for the end of such pipes. The session of its own keeps what is sent to the
	// daemon's process group, or by its terminal, away.
	p, err := os.StartProcess(o.executable(), []string{"vmlockd-holder", argument}, &os.ProcAttr{
		Dir:   "/",
		Env:   environment,
		Files: []*os.File{null, null, null, listener},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	spawnAfter.Pass()
	o.child = p.Pid
	return p.Release() // reap looks after it
}

// executable is this program itself, also if its file was replaced meanwhile: the
// holder then speaks the same version.
func (o *starter) executable() string {
	if o.program != "" {
		return o.program
	}
	return "/proc/self/exe"
}

// reap removes what is left of an ended holder if it was a child of this process,
// also of what this process executed before. It does not wait.
func reap(pid int) {
	if pid > 0 {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// lockFile takes a lock that ends with the process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = unix.Close(fd) }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = unix.Close(fd)
			return nil, fmt.Errorf("another process starts one: %w", ctx.Err())
		}
	}
}
