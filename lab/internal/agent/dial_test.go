package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// serveDial makes a unix socket and serves the agent's dial on it.
func serveDial(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(new(agent).dial)}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return path
}

func upgrade(t *testing.T, agent, target string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, err := net.Dial("unix", agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /dial?path=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nearly ", url.QueryEscape(target), wire.UpgradeUnix)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, resp
}

func TestDialPipesBothWays(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	l, err := net.Listen("unix", target)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, r, resp := upgrade(t, serveDial(t), target)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	fmt.Fprint(c, "and late")
	buf := make([]byte, len("early and late"))
	if _, err := io.ReadFull(there, buf); err != nil || string(buf) != "early and late" {
		t.Fatalf("%q, %v", buf, err)
	}
	fmt.Fprint(there, "back")
	if _, err := io.ReadFull(r, buf[:4]); err != nil || string(buf[:4]) != "back" {
		t.Fatalf("%q, %v", buf[:4], err)
	}
	c.Close()
	if n, err := there.Read(buf); err != io.EOF {
		t.Fatalf("after the other end was closed: %d bytes, %v", n, err)
	}
}

func TestDialEndsWithTheSocket(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	l, err := net.Listen("unix", target)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, r, _ := upgrade(t, serveDial(t), target)
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(there, "last words")
	there.Close()
	if b, err := io.ReadAll(r); string(b) != "last words" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestDialRefused(t *testing.T) {
	_, _, resp := upgrade(t, serveDial(t), filepath.Join(t.TempDir(), "nothing"))
	if resp.StatusCode != http.StatusNotFound {
		t.Error(resp.Status)
	}
}
