package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// dial connects to a unix socket of the node and makes the request's connection a pipe to it, by HTTP's upgrade. The
// end of either side is the end of both.
func (a *agent) dial(w http.ResponseWriter, r *http.Request) {
	there, err := dialUnix(r.Context(), r.URL.Query().Get("path"))
	if err != nil {
		wire.WriteError(w, err)
		return
	}
	defer there.Close()
	here, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		wire.WriteError(w, err)
		return
	}
	defer here.Close()
	if _, err := fmt.Fprintf(here, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.UpgradeUnix); err != nil {
		return
	}
	pipe(here, buf.Reader, there)
}

// pipe copies both ways until one of the two ends, and closes both. fromHere is here with what was read too early.
func pipe(here net.Conn, fromHere *bufio.Reader, there net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(there, fromHere)
		if errors.Is(err, syscall.EPIPE) {
			return // there has ended, but its last words may still be on their way
		}
		here.Close()
		there.Close()
	}()
	_, _ = io.Copy(here, there) // how it ended does not matter: the other side sees that it did
	here.Close()
	there.Close()
	<-done
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, syscall.EAGAIN): // its backlog is full: a connect that blocks would wait
		case errors.Is(err, fs.ErrNotExist):
			return nil, wire.Errorf(wire.CodeNotFound, "%v", err)
		case errors.Is(err, syscall.ECONNREFUSED):
			return nil, wire.Errorf(wire.CodeState, "%v", err)
		default:
			return nil, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}
