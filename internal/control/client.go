package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds, in bytes, what a Client reads: about a million holders.
const maxAnswer = 512 << 20

// dialTimeout bounds how long the daemon may take to take a connection.
const dialTimeout = 5 * time.Second

// Client asks a daemon. It may be used from many goroutines. Every error is an
// *Error, or the error of a context that has ended.
type Client struct {
	path string
	http *http.Client
}

// NewClient makes a Client of the daemon whose control socket is at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}}
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) do(ctx context.Context, method, path string, q url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	target := url.URL{Scheme: "http", Host: "vmlockd", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.because(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var f Failure
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil || f.Error.Code == "" {
		return nil, &Error{CodeFailed, fmt.Sprintf("the daemon answered %s: %s", resp.Status, bytes.TrimSpace(text))}
	}
	return nil, &f.Error
}

func (c *Client) because(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrPermission):
		return &Error{CodeForbidden, fmt.Sprintf("%s: only root and the daemon's own user may use the control socket", c.path)}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{CodeUnavailable, fmt.Sprintf("there is no control socket %s: is vmlockd running?", c.path)}
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op
	}
	return &Error{CodeUnavailable, fmt.Sprintf("vmlockd does not answer on %s: %v", c.path, err)}
}

// call asks and reads the answer into out.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	resp, err := c.do(ctx, method, path, q, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &Error{CodeUnavailable, fmt.Sprintf("the answer of vmlockd cannot be read: %v", err)}
	}
	return nil
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, nil, &st)
	return st, err
}

// Holders asks who holds what. The parameters are those of /v1/holders.
func (c *Client) Holders(ctx context.Context, q url.Values) (h Holders, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/holders", q, nil, &h)
	return h, err
}

// Who asks who holds a disk that has these names, in one lockspace or, if that is
// nil, in any.
func (c *Client) Who(ctx context.Context, names []string, lockspace *string) (h Holders, err error) {
	q := url.Values{"path": names}
	if lockspace != nil {
		q.Set("lockspace", *lockspace)
	}
	err = c.call(ctx, http.MethodGet, "/v1/who", q, nil, &h)
	return h, err
}

// Identify asks which disk a path is, on this host or on all.
func (c *Client) Identify(ctx context.Context, path string, all bool) (d Identified, err error) {
	q := url.Values{"path": {path}}
	if all {
		q.Set("cluster", "true")
	}
	err = c.call(ctx, http.MethodGet, "/v1/identify", q, nil, &d)
	return d, err
}

// Refused asks who was refused lately, and who waits.
func (c *Client) Refused(ctx context.Context) (r Refused, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/refused", nil, nil, &r)
	return r, err
}

// Release releases a lock.
func (c *Client) Release(ctx context.Context, q ReleaseRequest) (r Released, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/release", nil, q, &r)
	return r, err
}

// Drained asks whether the host is being drained.
func (c *Client) Drained(ctx context.Context) (d Drain, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/drain", nil, nil, &d)
	return d, err
}

// Drain begins or ends a drain.
func (c *Client) Drain(ctx context.Context, q DrainRequest) (d Drain, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/drain", nil, q, &d)
	return d, err
}

// ConfirmDead says that a node is off.
func (c *Client) ConfirmDead(ctx context.Context, q ConfirmDeadRequest) (d ConfirmedDead, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/confirm-dead", nil, q, &d)
	return d, err
}

// Watch calls f with each line of /v1/events until ctx ends, the daemon goes
// away, or f returns an error, which is then its own. begun is called when the
// daemon has accepted, with its Status.Started as text and the number of the event
// after which it begins. As the parameter started, the text makes the parameter
// since count for that daemon only, and be 0 for any other. Unless ctx ended it never
// returns nil.
func (c *Client) Watch(ctx context.Context, q url.Values, begun func(started string, since uint64), f func(Line) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/events", q, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	since, err := strconv.ParseUint(resp.Header.Get(sinceHeader), 10, 64)
	if err != nil {
		return &Error{CodeUnavailable, fmt.Sprintf("the answer of vmlockd cannot be read: %v", err)}
	}
	begun(resp.Header.Get(startedHeader), since)
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var l Line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return &Error{CodeUnavailable, fmt.Sprintf("the answer of vmlockd cannot be read: %v", err)}
		}
		if err := f(l); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	why := "it closed the connection"
	if err := lines.Err(); err != nil {
		why = strings.TrimSpace(err.Error())
	}
	return &Error{CodeUnavailable, "vmlockd has stopped or was restarted: " + why}
}
