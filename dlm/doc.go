// Package dlm uses the distributed lock manager (DLM) in the Linux kernel: locks that all hosts of a corosync cluster
// agree on. It speaks the kernel's device interface itself, without cgo and without libdlm.
//
//	ls, err := dlm.Create(ctx, dlm.Host(), "disks", dlm.Options{})
//	...
//	l, err := ls.Lock(ctx, "disk-1", dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
//	if errors.Is(err, dlm.ErrBusy) { /* somebody in the cluster has it */ }
//
// # What it promises
//
// Nothing that the kernel blocks holds up anything else. While a lockspace is stopped - during recovery, without quorum,
// while fencing is awaited - the kernel keeps every request and every close, and the threads that made them cannot even
// be killed. So each write has a goroutine of its own, their number is bounded (Options.InFlight), results are read
// through Go's poller, and every call returns when its context ends, Close included.
//
// What a call reports as failed is undone. A Lock whose context ends is withdrawn in the kernel, and released if it is
// granted all the same, also when the kernel takes it only much later. Stats says how many such requests there are and
// how old the oldest is. This ends with the process: what a dying process leaves behind is released by the kernel, or
// is an orphan if it was Persistent. Conversely, granted means granted: a Lock that is returned was granted by the
// kernel.
//
// A program that is replaced by another one in the same process (execve(2)) need not leave orphans: Handover keeps the
// device open and says what the next program has to know, which goes on with Resume. No lock has to be adopted then, and
// no request is made.
//
// All methods may be called from any goroutine. Errors are *OpError around the package's sentinels, the context's error
// or the kernel's number; errors.Is works with all of them.
//
// # What the kernel does
//
// Found in fs/dlm of Linux 6.1 and checked on it by package dlmtest/conformance:
//
//   - A persistent lock outlives its process as an orphan of the node. Adopt finds it by name and mode, the oldest first.
//     It ends by being adopted and released, by Purge, or with the node.
//   - An LVB is kept as long as anyone has a lock on the resource, a NL lock included, and is gone with the last one.
//     It becomes invalid when a process dies, or an orphan is purged, that had PW or EX; when a node is lost that had
//     PW or EX and touched the LVB with its last request; and when the node is lost that kept the resource's books,
//     unless someone else has the LVB with a mode above CR. But if then nobody else had asked for the LVB at all, it is
//     as if nobody had ever written it: all zero, and valid. So an all-zero LVB must mean "unknown".
//   - A conversion replaces the lock's flags, Persistent included; this package repeats it.
//   - The release of a PW or EX lock writes the LVB if the last request about the lock had to do with the LVB; this package
//     sees to it that this changes nothing, unless UnlockLVB asks for it. (A Lock with LVB in PW or EX that is given up in the very moment of its
//     grant may make the LVB invalid.)
//   - The number of a lock is used again at once after its last result is read; this package never names a lock by number
//     when it may have ended by itself.
//   - A request with Persistent that has not been granted when its process ends leaves something among the orphans. It has
//     no mode, so Adopt returns ErrOtherMode for every mode; it keeps nobody waiting; and on the node that keeps the
//     resource's books, PURGE crashes the kernel over it (a NULL pointer in del_lkb). So this package never lets such a
//     request wait: see LockOptions.Persistent. What remains is a NoQueue request that is just on its way to another node
//     when the process is killed, and is refused there. To be safe, do not Purge when an adoption has returned
//     ErrOtherMode for all modes.
//   - If such a request is granted instead, there is an orphan that can be adopted and released, but no result about it
//     is ever delivered. So the release of an adopted lock, and its conversion with NoQueue, waits for its result for a moment only (ConvertOptions.Patience). Worse, the kernel
//     puts the result into a queue that was freed with the process (dlm_user_add_ast), and has been seen to crash over
//     it, once in about 500 kills under full load. Nothing that the process itself can do excludes that: a conversion to
//     Persistent after the grant is on its way in the same way. Another process can, that has the device open too: see
//     Lockspace.Duplicate and DrainFile.
//
// # Why it is made this way
//
// The port to the kernel, Kernel and Device, passes bytes and not Go values, so that the simulation in package dlmtest
// is spoken to in the same bytes, and a proxy (package dlmtest/remote) needs to know nothing of them. All that is known
// about locks is under one mutex of the Lockspace, because events about one lock come from three sides - callers,
// returning writes, results - in any order; the file machine.go has all of it.
package dlm
