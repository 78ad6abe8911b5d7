package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/supervisor"
	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// DialUnix connects to the unix socket at path in the node, through the supervisor and the command network, so that
// one process with one clock can talk to daemons of several nodes. Whoever listens there sees the lab's agent in the
// node as its peer. The end of either side is the end of both; there is no closing of one direction only. The
// connection ends with the node's power. The context bounds the connecting only.
//
// ErrNotFound: there is no such socket. ErrState: nobody listens on it. ErrNodeOff.
func (n *Node) DialUnix(ctx context.Context, path string) (net.Conn, error) {
	c, err := n.dialUnix(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%s: dial unix %s: %w", n.Name(), path, err)
	}
	return c, nil
}

// HTTPClient speaks HTTP to whoever listens on the unix socket at path in the node, whatever host an address names. Each
// request has a connection of its own, as with DialUnix.
func (n *Node) HTTPClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return n.DialUnix(ctx, path) },
	}}
}

func (n *Node) dialUnix(ctx context.Context, path string) (_ net.Conn, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(RunDir, n.lab.name, supervisor.SocketFile))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() { // the deadline has been set or is about to be
			err = context.Cause(ctx)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+n.agentPath("/dial?path="+url.QueryEscape(path)), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", wire.UpgradeUnix)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		var e wire.Error
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(b))
		}
		return nil, translate(&wire.RemoteError{Message: e.Message, Code: e.Code})
	}
	return &dialed{Conn: conn, r: r}, nil
}

// dialed is a connection of which r may have read something already.
type dialed struct {
	net.Conn
	r *bufio.Reader
}

func (d *dialed) Read(p []byte) (int, error) { return d.r.Read(p) }
