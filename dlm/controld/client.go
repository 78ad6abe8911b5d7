package controld

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Client asks one dlm_controld, one question at a time. Its methods may be called from any goroutine, and there is
// nothing to close.
type Client struct {
	dial func(context.Context) (net.Conn, error)
	turn chan struct{} // holds a token while a question is under way
}

// New makes a Client that reaches the daemon by dial, which must return soon after its context ends. Its errors that
// are syscall.ECONNREFUSED (nobody listens) and syscall.EAGAIN (too many wait already) are understood.
func New(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{dial: dial, turn: make(chan struct{}, 1)}
}

// Host makes a Client for the dlm_controld of this host: whoever listens on the abstract unix socket dlmc_query_sock in
// this process's network namespace, provided that it is root. (Anybody can listen there while dlm_controld is not
// running.)
func Host() *Client { return New(dialHost) }

func dialHost(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", "@dlmc_query_sock")
	if err != nil {
		return nil, err
	}
	uid, err := peerUID(conn.(*net.UnixConn))
	if err == nil && uid != 0 {
		err = fmt.Errorf("%w: a program of user %d has its socket", ErrNotRunning, uid)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// ask sends a request and has read read the answer. With linger the connection is kept until the daemon has answered,
// also when ctx ends first; see the package comment.
func ask[T any](ctx context.Context, c *Client, op, lockspace string, req []byte, linger bool, read func(io.Reader) (T, error)) (T, error) {
	var zero T
	fail := func(err error) (T, error) {
		return zero, &OpError{Op: op, Lockspace: lockspace, Err: because(ctx, err)}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	conn, err := c.dial(ctx)
	if err != nil {
		<-c.turn
		return fail(err)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-c.turn }()
		defer conn.Close()
		var r result
		if _, r.err = conn.Write(req); r.err == nil {
			r.v, r.err = read(bufio.NewReader(conn))
			if linger && errors.Is(r.err, ErrMalformed) {
				_, _ = io.Copy(io.Discard, conn) // it is still writing, perhaps
			}
		}
		done <- r
	}()
	if !linger {
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	select {
	case r := <-done:
		if r.err != nil {
			return fail(r.err)
		}
		return r.v, nil
	case <-ctx.Done():
		return fail(ctx.Err())
	}
}

// because turns the error of a connection, or of the daemon, into one of this package's.
func because(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, ErrNotRunning), errors.Is(err, ErrVersion), errors.Is(err, ErrMalformed):
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	case errors.Is(err, syscall.ENOENT):
		return ErrNoLockspace
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w: it closed the connection; it does that to a version of the protocol it does not know", ErrNoAnswer)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return err
}
