// Package corosync uses a host's corosync: closed process groups (CPG), quorum and ring membership, and the
// configuration map (cmap). It calls corosync's own client libraries, which it loads when they are first needed: no cgo,
// and a program that imports it starts without them (it does need glibc). Corosync itself authenticates who may
// connect, root by default, and which hosts are in the cluster.
//
//	g, err := corosync.Join(ctx, corosync.Host(), "disks", corosync.Options{})
//	...
//	for ev := range g.Events() {
//		switch ev := ev.(type) {
//		case corosync.Membership: // who is in the group now, who came and who left, and why
//		case corosync.Message:    // the same messages, in the same order, at all members
//		case corosync.Down:       // corosync ended, or does not answer: all of that is void
//		case corosync.Up:         // and here it is again
//		}
//	}
//
// # What it promises
//
// A Group and a Quorum stay for as long as they are open: when corosync ends or is restarted, they say Down, try again
// in growing intervals (Options.MinRetry to Options.MaxRetry), and say Up. Nothing is carried over: after Up comes the
// membership as it is then, and what was sent while it was Down was refused.
//
// A call of the library that hangs - corosync is stopped, or starved - hangs nobody else. Each connection belongs to one
// goroutine, which alone calls the library; a call of it that takes longer than Options.Patience makes the connection
// Down with ErrNoAnswer, and callers get that at once. There is never more than one such goroutine for a Group, Quorum
// or Cmap, since a new connection waits for the end of the old. It is woken by the connection's descriptor through Go's
// poller, so that an idle connection costs no thread. All calls return when their context ends, Close included; Close
// without an end of its context returns after Patience.
//
// Memory is bounded. Corosync queues without bound for a client that does not take its messages, to its own harm; so a
// Group takes them always, and whoever leaves more than Options.Queue bytes of them in Events is thrown out: Down with
// ErrSlow, and a new start. No message is ever lost between an Up and the next Down. A message longer than
// Options.MaxMessage is neither sent nor delivered; what the library needs to put the fragments of a message together
// is corosync's affair (its libcpg takes what the sender announces), and only members of the cluster can send.
//
// All methods may be called from any goroutine. Errors are *OpError around the package's sentinels or the context's
// error; errors.Is works with all of them.
//
// # What corosync does
//
// Found with corosync 3.1.7 and checked by package corosynctest/conformance:
//
//   - A member gets its own messages and its own joining, and everybody who stays gets the same messages and
//     memberships in the same order. A message that was accepted is delivered unless the sender's corosync ends first.
//   - Leaving is ReasonLeave; the end of a process, whether by exit or signal, is ReasonProcDown; the loss of a node or
//     the end of its corosync is ReasonNodeDown. When separated nodes meet again, the others' members are joined, with
//     ReasonNodeUp. So is a process on a node whose corosync has just started, if it joined before that met the others.
//   - Lists of members hold at most 128 of them in one group.
//   - While corosync is just starting, calls may be refused with "try again"; this package does.
//   - Corosync that was ended in good order or killed is ErrNotRunning, at once. Stopped (SIGSTOP), it still takes some
//     messages into its queue: Send may succeed, and only the next call that needs an answer hangs.
//
// # Why it is made this way
//
// The port, System, is as narrow as what Group, Quorum and Cmap need of the libraries, so that the simulation in package
// corosynctest runs everything that is hard - connections that end, hang, and come back - with the code that runs on
// real hosts. Callbacks of C code are made once per process, because purego never frees them.
package corosync
