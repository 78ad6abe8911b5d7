// Package dlmtest is a DLM in memory, for tests: several nodes, their processes, and one set of locks, behind the same
// port as the kernel's and in the same bytes. It knows
//
//   - the six modes, the queues of granted, converting and waiting locks and their order, NOQUEUE, CANCEL, FORCEUNLOCK,
//     EXPEDITE, conversion deadlocks, blocking notices;
//   - lock value blocks, with what becomes of them when a node is lost;
//   - persistent locks, which are orphans after the end of their process, adoption, purge;
//   - a lockspace that is stopped: writes and close wait, adoption does not;
//   - a process's death, a node's loss, and faults on demand: refused, held back, or answered late.
//
// It does what fs/dlm of Linux 6.1 does, as read there and as the conformance suite (package conformance) finds it on
// the real kernel. Like the kernel it gives the lowest free number to a new lock, so that a program that uses a lock's
// number too long is found out. It differs in that nothing takes time: between nodes all is agreed at once, and only a
// Fault shows a program what a slow network would.
//
// Everything is guarded by one mutex of the Cluster, and no goroutines are started, so that it works in a
// testing/synctest bubble, where all its waiting is durable.
package dlmtest
