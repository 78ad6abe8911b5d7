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

// connect connects to the running holder, or to a new one. With eager it does not wait for
// a new one's answer to hello: the reply is the zero one then.
func (o *starter) connect(ctx context.Context, eager bool) (*link, helloReply, error) {
	var last error
	for range maxTries {
		if err := ctx.Err(); err != nil {
			return nil, helloReply{}, errors.Join(err, last)
		}
		fd, err := dial(o.socket)
		started := false
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			fd, started, err = o.start(ctx)
		}
		if err != nil {
			return nil, helloReply{}, err
		}
		l, err := newLink(fd)
		if err != nil {
			return nil, helloReply{}, err
		}
		if started && eager {
			l.pid = o.child
			return l, helloReply{}, nil
		}
		hello, err := greet(ctx, l, started)
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

// hello is what a daemon says first.
var hello = helloRequest{version: version}.append(header{op: opHello}.append(nil))

// greet says hello on a new link, if that was not said, and closes it after an error.
func greet(ctx context.Context, l *link, said bool) (helloReply, error) {
	defer l.until(ctx)()
	if !said {
		if err := l.send(hello); err != nil {
			l.file.Close()
			return helloReply{}, err
		}
	}
	h, body, p, err := l.reply(0, opHello)
	var reply helloReply
	if err == nil {
		closeAll(p.fds)
		reply, err = greeted(h, body)
	}
	if err != nil {
		l.file.Close()
		return helloReply{}, withContext(ctx, err)
	}
	l.pid, l.limit, l.version = int(reply.pid), int(reply.limit), min(version, reply.version)
	return reply, nil
}

// greeted is the reply to hello, or why it is none to go on with.
func greeted(h header, body *cursor) (helloReply, error) {
	reply, err := decodeHelloReply(body)
	switch {
	case err != nil:
		return helloReply{}, err
	case h.errno == unix.EBUSY:
		return helloReply{}, fmt.Errorf("%w (process %d)", ErrConnected, reply.pid)
	case h.errno != 0:
		return helloReply{}, h.errno
	}
	return reply, nil
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

// start starts a holder, connects to it and says hello. Of several processes that do this at
// the same time one starts it, and the others connect.
func (o *starter) start(ctx context.Context) (fd int, started bool, err error) {
	unlock, err := lockFile(ctx, o.socket+".lock")
	if err != nil {
		return -1, false, fmt.Errorf("start a holder: %w", err)
	}
	defer unlock()
	fd, err = dial(o.socket)
	if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		return fd, false, err
	}
	fd, err = o.spawn()
	if err != nil {
		return -1, false, fmt.Errorf("start a holder: %w", err)
	}
	return fd, true, nil
}

// The points at which a crash test kills the daemon.
var (
	spawnBefore = failpoint.New("holder.spawn.before")
	spawnAfter  = failpoint.New("holder.spawn.after")
)

// spawn listens on the socket, connects, says hello, and starts the process that serves it. The
// connections of the time until it does wait in the backlog, and this one is the first
// of them: the socket has another name until it is connected.
func (o *starter) spawn() (fd int, err error) {
	spawnBefore.Pass()
	first := o.socket + "+"
	listener, err := listen(first)
	if err != nil {
		return -1, err
	}
	defer listener.Close()
	fd, err = dial(first)
	if err != nil {
		return -1, err
	}
	if err = send(fd, hello, nil); err == nil {
		err = unix.Rename(first, o.socket)
	}
	if err == nil {
		err = o.execute(listener)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	spawnAfter.Pass()
	return fd, nil
}

// listen makes a socket at path, which is replaced.
func listen(path string) (*os.File, error) {
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return nil, fmt.Errorf("unlink %s: %w", path, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	listener := os.NewFile(uintptr(fd), path)
	// Linux gives the file of a socket the mode of the socket itself, so that
	// there is no moment with other permissions.
	if err = unix.Fchmod(fd, 0o600); err != nil {
		err = fmt.Errorf("fchmod: %w", err)
	} else if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		err = fmt.Errorf("bind %s: %w", path, err)
	} else if err = unix.Listen(fd, maxConns); err != nil {
		err = fmt.Errorf("listen on %s: %w", path, err)
	}
	if err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// execute starts the holder of a socket.
func (o *starter) execute(listener *os.File) error {
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
