// Package lockprogram is libvirt's lock space program, 0xEA7BEEF version 1
// (src/locking/lock_protocol.x): its eight procedures for a Server of package
// rpc, and a client for them.
//
// It decides what a session decides: whether arguments can be read, flags are
// known, the session is restricted, and an owner is registered, in this order,
// which is virtlockd's (src/locking/lock_daemon_dispatch.c). What comes after,
// lockspaces and resources, is decided by package locking. Errors get the codes,
// domains and words of virtlockd 9.0, as seen on the wire.
//
// A session whose client is the registered owner itself stands for that owner's
// life: when the client closes it, locking is told. All other ends of sessions
// change nothing, in particular not that the server stops.
package lockprogram
