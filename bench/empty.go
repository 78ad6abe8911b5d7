package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// emptyCommand makes this program a server that answers OK to every call and does
// nothing else: emptyCommand SOCKET. What a client gets of it is the most that any
// daemon can give on this machine, beside this client.
const emptyCommand = "empty-server"

// whoEmpty is the server's name in the tables.
const whoEmpty = "empty server"

// newEmpty starts an empty server.
func newEmpty(ctx context.Context) (*daemon, error) {
	d, err := newDaemon(whoEmpty)
	if err != nil {
		return nil, err
	}
	d.socket = filepath.Join(d.state, "sock")
	d.args = []string{"/proc/self/exe", emptyCommand, d.socket}
	if _, err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// callBytes bounds a call that the empty server understands: all of the bench's are shorter.
const callBytes = 4096

// empty is emptyCommand. One thread waits for all connections, reads a call with one system
// call and answers it with another. Nothing is allocated, so nothing is ever collected.
func empty(path string) error {
	runtime.GOMAXPROCS(1)
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	// Of package net, as it makes the socket; the loop below accepts from it.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	f, err := l.File()
	if err != nil {
		return err
	}
	listener := int(f.Fd())
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	watch := func(fd int) error {
		return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err := watch(listener); err != nil {
		return err
	}
	var events [128]unix.EpollEvent
	b := make([]byte, callBytes)
	for {
		n, err := unix.EpollWait(poll, events[:], -1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) != listener {
				if !emptyAnswer(int(e.Fd), b) {
					unix.Close(int(e.Fd))
				}
				continue
			}
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err == nil {
				err = watch(fd)
			}
			if err != nil {
				return fmt.Errorf("accept: %w", err)
			}
		}
	}
}

// emptyAnswer answers the call that has come on fd. It reports false at the end of the
// connection, and where there is anything but one whole call, which the bench never sends.
func emptyAnswer(fd int, b []byte) bool {
	n, err := unix.Read(fd, b)
	const header = 28 // length, program, version, procedure, type, serial, status
	if err != nil || n < header || int(binary.BigEndian.Uint32(b)) != n {
		return false
	}
	reply := b[:header]
	binary.BigEndian.PutUint32(reply, header)
	binary.BigEndian.PutUint32(reply[16:], 1) // VIR_NET_REPLY; its status is 0 as in the call
	n, err = unix.Write(fd, reply)
	return err == nil && n == header
}
