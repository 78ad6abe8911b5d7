// Package holder keeps the descriptors of locked files open in a process of its
// own, so that open file description locks (fcntl(2), F_OFD_SETLK) survive the
// death of the daemon. Such a lock belongs to the open file and ends with its
// last descriptor: while the holder has a duplicate there is no moment in which
// another process can take the lock, however the daemon ends.
//
// The daemon has a Client. Put passes a descriptor; Drop takes it back. What is in
// the holder's socket is with the holder: the kernel keeps it open whatever becomes
// of the daemon, and the next daemon is answered after it. The next daemon gets duplicates of
// everything when it connects, and the holder keeps its own. A daemon that is
// replaced by another program in the same process gives it the connection and its
// own descriptors (Handover, Resume), and the holder notices nothing. When the holder ends,
// the client starts another one and puts everything again; what was locked stays
// locked meanwhile by the daemon's own descriptors. Only the death of both loses
// locks. All methods may be called from many goroutines.
//
// The holder is this program itself, executed with a hidden argument, in a
// session of its own, with nothing of the daemon's but its listening socket. It
// serves one daemon at a time; the next one is served when the connection of the
// one before has ended. It ends when it has held nothing, and no daemon was
// connected, for three seconds, and never while it holds something: it
// ignores SIGTERM then (except when systemd shuts the host down), asks the
// kernel's OOM killer to choose another, and a daemon that talks nonsense loses its
// connection and no lock. Its service needs KillMode=process, OOMPolicy=continue,
// RuntimeDirectoryPreserve=yes, and LimitNOFILE= as high as there may be disks.
//
// # The protocol
//
// Messages of a seqpacket socket, at most 32 KiB, with up to 253 descriptors
// (SCM_MAX_FD, unix(7)). HELLO agrees on the lower version of both; later
// versions only add operations, as the holder of an earlier build lives on after
// an upgrade as long as it holds something. CHANGE drops and puts; LIST gives all,
// page by page. The client has one message that wants a reply under way at a
// time, and what comes meanwhile makes up the next one: a lone caller waits only
// until its message is sent, unless the holder has less than half its room left;
// many callers share a round trip. This also bounds what is in flight, for
// which unix(7) allows an unprivileged user RLIMIT_NOFILE descriptors, below any
// limit. Each descriptor has a number that is never used again, so that a late
// Drop never takes another descriptor of the same key.
//
// # Why not systemd's descriptor store
//
// FDSTORE=1 (sd_notify(3)) does the same with no process of our own. But it works
// only for a system service under systemd with FileDescriptorStoreMax= set; it has
// no answer, so that a grant would have to wait for a barrier (BARRIER=1), a round
// trip through process 1, where a full store is a message in the log and not an error
// for us; process 1 compares each new descriptor with all that it has (same_fd in
// service_add_fd_store, src/core/service.c), 50 million times for 10,000; it
// gives them back only to a new start, with all names in one variable
// LISTEN_FDNAMES, for which execve(2) allows 128 KiB (MAX_ARG_STRLEN), no more than
// 7,000 names like "file 64769 1234567"; and stopping the service loses all
// before systemd 254 (FileDescriptorStorePreserve=).
//
// A child that shares the daemon's table of descriptors (clone(2), CLONE_FILES)
// would cost nothing for each lock, but it cannot execute another program, and a
// copy of a multi-threaded Go process without exec can do next to nothing safely. It
// would also keep all connections of the dead daemon open.
//
// Figures, from the benchmarks here and in internal/backend/local, on two busy
// cores: a Put and its Drop take 80 to 110 us for a lone caller; with 64 callers 4
// to 7 us, of which 3 to 5 us are processor time of the daemon and 1.5 to 2 us of
// the holder. The holder starts in 5 ms. It has 3.3 MiB (PSS) beside the daemon, as
// both share the program's text, 6.2 MiB alone, and 200 bytes for each descriptor. A
// daemon that connects receives 10,000 descriptors in 15 to 50 ms, and has locked
// 9,000 of them once more after 0.25 s.
package holder
