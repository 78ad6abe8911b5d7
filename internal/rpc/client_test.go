package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
)

func TestClientGivesUp(t *testing.T) {
	s := startServer(t, Options{})
	c := s.dial()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Call(ctx, 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered
	cancel()
	if err := <-done; !errors.Is(err, ErrBroken) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := echo(c, "x"); !errors.Is(err, ErrBroken) {
		t.Errorf("the connection is used although an answer is on its way: %v", err)
	}
	close(s.prog.unblock)

	c = s.dial()
	if err := c.Call(ctx, 77, 2, procNumber, nil, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrBroken) {
		t.Errorf("a call that does not begin: %v", err)
	}
	if err := echo(c, "x"); err != nil {
		t.Error(err)
	}
}

// fakeServer answers the calls of a Client with what f makes of their serial.
func fakeServer(t *testing.T, f func(serial uint32) []byte) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var head [28]byte
		for {
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			if _, err := c.Write(f(binary.BigEndian.Uint32(head[20:]))); err != nil {
				return
			}
		}
	}()
	c, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		l.Close()
		<-done
	})
	return c
}

func answerWith(h header, payload ...byte) []byte {
	b := append(appendMessage(nil, h), payload...)
	finishMessage(b)
	return b
}

func TestClientChecksAnswers(t *testing.T) {
	good := header{program: 77, version: 2, procedure: procNumber, typ: typeReply}
	ping := answerWith(header{program: keepaliveProgram, version: 1, procedure: keepalivePing, typ: typeMessage})
	pong := answerWith(header{program: keepaliveProgram, version: 1, procedure: keepalivePong, typ: typeMessage})
	tests := map[string]struct {
		answer func(serial uint32) []byte
		ok     bool
	}{
		"good": {func(n uint32) []byte { h := good; h.serial = n; return answerWith(h, 0, 0, 0, 7) }, true},
		"after keepalive": {func(n uint32) []byte {
			h := good
			h.serial = n
			return append(append(append([]byte{}, pong...), ping...), answerWith(h, 0, 0, 0, 7)...)
		}, true},
		"other serial":    {func(n uint32) []byte { h := good; h.serial = n + 1; return answerWith(h, 0, 0, 0, 7) }, false},
		"other procedure": {func(n uint32) []byte { h := good; h.serial, h.procedure = n, 9; return answerWith(h, 0, 0, 0, 7) }, false},
		"no reply":        {func(n uint32) []byte { h := good; h.serial, h.typ = n, typeCall; return answerWith(h, 0, 0, 0, 7) }, false},
		"bad status":      {func(n uint32) []byte { h := good; h.serial, h.status = n, 2; return answerWith(h, 0, 0, 0, 7) }, false},
		"cut short":       {func(n uint32) []byte { h := good; h.serial = n; return answerWith(h, 0, 0, 0) }, false},
		"half an error":   {func(n uint32) []byte { h := good; h.serial, h.status = n, 1; return answerWith(h, 0, 0, 0, 1) }, false},
		"bad length":      {func(uint32) []byte { return make([]byte, 28) }, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := fakeServer(t, test.answer)
			var n number
			err := c.Call(context.Background(), 77, 2, procNumber, nil, &n)
			if test.ok && (err != nil || n != 7) {
				t.Errorf("%d, %v", n, err)
			}
			if !test.ok && (!errors.Is(err, ErrBroken) || !errors.Is(err, errFraming)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestDialWaitsForTheBacklog: a blocking connect(2) waits when the backlog is
// full; Go's fails with EAGAIN.
func TestDialWaitsForTheBacklog(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	path := filepath.Join(t.TempDir(), "sock")
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Dial(ctx, path); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	done := make(chan error, 1)
	go func() {
		c, err := Dial(context.Background(), path)
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	nfd, _, err := syscall.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(nfd)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
