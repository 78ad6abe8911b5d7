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
// page by page. A CHANGE that the holder is sure to carry out, as less than half its room is used,
// wants no reply, and is with the holder as soon as it is in its socket; should it fail all the
// same the holder says so, and the client puts that again and complains meanwhile. One in 65 wants a reply,
// and there is one such under way at a time: so what is in flight fits into the socket, and stays below the limits
// of unix(7), which allows an unprivileged user RLIMIT_NOFILE descriptors there. After a message that wants no
// reply the holder sleeps for half a millisecond, and then handles all that came: a lock
// costs the daemon one system call and no change of processes. Each descriptor has a number that is never used
// again, so that a late Drop never takes another descriptor of the same key.
//
// A daemon that starts a holder says hello before that runs, as the first one in its
// backlog, and goes on: its first Put waits until the holder has said what it can.
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
// cores: a Put and its Drop take 13 us for a lone caller, and with 64 callers 1.1 us, of which
// 0.5 us more are processor time of the holder. When each message was answered, and the holder
// woken by it, they took 60 us and 3.2 us in the same minutes. A holder is started in 0.7 ms, and
// has answered 2.3 ms later. It has 3.3 MiB (PSS) beside the daemon, as
// both share the program's text, 6.2 MiB alone, and 200 bytes for each descriptor. A
// daemon that connects receives 10,000 descriptors in 15 to 50 ms, and has locked
// 9,000 of them once more after 0.25 s.
package holder
