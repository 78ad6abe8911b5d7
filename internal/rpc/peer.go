package rpc

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// Peer is who made the connection, as the kernel saw it at that moment
// (SO_PEERCRED, unix(7)).
type Peer struct {
	PID int32 // 0 if the process is in a PID namespace that this one cannot see
	UID uint32
	GID uint32
}

// PeerOf asks the kernel who is at the other end of c. On the client's side
// that is the process that made the listening socket.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", credErr)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// SameUserOrRoot is whom a lock daemon serves: root, and the user it runs as.
func SameUserOrRoot(p Peer) bool {
	return p.UID == 0 || p.UID == uint32(os.Geteuid())
}
