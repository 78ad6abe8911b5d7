// Package locking holds the rules of who may hold what: lockspaces, resources,
// modes and owners, as libvirt's lock manager protocol knows them. It makes no
// system call. Where a lock is really held (Backend) and how a process is
// watched (Processes) are ports that other packages fill.
//
// What it promises:
//
//   - A resource never has two owners unless all of them share it.
//   - Acquire returns nil only after the backend granted the lock.
//   - A lock ends when its owner releases it, when its owner's process is
//     proven gone, or when an operator forces it. Nothing else ends one; in
//     particular a closed connection does not, and neither does Close.
//   - Operations on one resource happen one after the other, operations on
//     different resources never wait for each other.
//
// A Manager and the Registrations it hands out may be used from many goroutines.
package locking
