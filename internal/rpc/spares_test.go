package rpc

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestWarnsBeforeDescriptorsRunOut, once, while four fifths of them are in use and
// clients are still served.
func TestWarnsBeforeDescriptorsRunOut(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := c.(*net.UnixConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number uint64
	if err := raw.Control(func(fd uintptr) { number = uint64(fd) }); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		limit uint64
		warns bool
	}{
		{number + 1, true}, // more than four fifths of it
		{2 * number, false},
		{0, false}, // not known
	} {
		var text bytes.Buffer
		s := NewServer(Options{Log: slog.New(slog.NewTextHandler(&text, nil))})
		s.descriptors = k.limit
		s.warnOfDescriptors(conn)
		s.warnOfDescriptors(conn)
		want := 0
		if k.warns {
			want = 1
		}
		if got := strings.Count(text.String(), "LimitNOFILE"); got != want {
			t.Errorf("descriptor %d of %d: warned %d times, not %d: %s", number, k.limit, got, want, text.String())
		}
		s.spares.drop()
	}
}

// TestAcceptWarnsOfDescriptors: the warning comes with a connection, and that is served.
func TestAcceptWarnsOfDescriptors(t *testing.T) {
	log := new(testenv.Log)
	s := NewServer(Options{Programs: []Program{newTestProgram()}, Log: slog.New(slog.NewTextHandler(log, nil))})
	s.descriptors = 2 // any number is beyond that
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	defer func() {
		_ = s.Shutdown(context.Background())
		<-served
	}()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := echo(c, "x"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "descriptors are running out") {
		t.Errorf("the log: %s", log.String())
	}
}
