// Package controld asks dlm_controld, the daemon between corosync and the kernel's DLM, how the cluster is doing: who is
// a member, is there quorum, who must be fenced, and what does a lockspace wait for. It speaks the daemon's own protocol
// on its query socket, without cgo and without libdlmcontrol.
//
//	st, err := controld.Host().Status(ctx)
//	switch {
//	case errors.Is(err, controld.ErrNotRunning): // this host cannot use its locks
//	case err == nil && !st.Quorate: // nor now
//	}
//
// It only asks. Nothing here changes anything in the cluster.
//
// # What it promises
//
// Every call returns when its context ends, whatever the daemon does: one that is stopped or hangs accepts connections
// (the kernel does it for it) and never answers. What is read is bounded, in length and in number. All methods may be
// called from any goroutine; a Client asks one question at a time, because the daemon answers one at a time. Errors are
// *OpError around the package's sentinels; errors.Is works with them.
//
// # What the daemon does
//
// Read in dlm_controld/main.c, lib.c, cpg.c, daemon_cpg.c, dlm_controld.h and libdlmcontrol.h of dlm 4.2, and checked
// against that version:
//
//   - Queries are served by a thread of their own, one connection at a time, on the abstract unix socket
//     "dlmc_query_sock"; the socket "dlmc_sock" is for commands, which this package does not use. Each connection is
//     one request and one answer. The thread waits for the mutex of the main loop, so it does not answer while that is
//     busy stopping a lockspace in the kernel.
//   - A request of another major version, or without the magic number, is not answered: the connection is closed.
//   - Status, Config and Known are answered with MSG_NOSIGNAL. The other answers are written without it, and the daemon
//     does not ignore SIGPIPE by itself (systemd does that for its services, other ways to start it may not): if the
//     asker has gone by then, dlm_controld dies, and with it every lockspace of the host. So this package never closes a
//     connection with such a question before the daemon has answered or closed it; when the context ends first, the
//     connection is left open in the background, and no further question is asked until it has ended. That does not
//     help if the whole process ends in that moment. A program that must be safe to kill asks only Status, Config and
//     Known.
//   - While an answer is being sent the main loop waits too, so the long dumps (the debug log, up to 1 MiB) are not
//     offered here.
//   - The numbers are in the byte order and the alignment of the host's C compiler.
package controld
