// Package guard protects disks when a host loses the cluster and nobody fences
// it. On the host that is lost it stops the processes that own cluster locks,
// and kills them unless the cluster is back in time and the kernel proves that
// their locks are still theirs. On the other hosts it holds off: what a vanished
// host may still use is granted to nobody until that host must have stopped.
//
// docs/guard.md has the argument why that is enough, and what has to be true for
// it; Timing has its numbers. What decides - Timing, judge, ledger - is pure, and
// is told what time it is. A Guard puts it together with the world, through the
// ports in Options. Its clock is one that goes on while the host sleeps; what
// happens when is driven by package time, so that the simulation in the tests
// runs the real Guard in virtual time.
//
// What must survive the daemon - who was stopped and until when, and who has
// vanished - is written to a file before it is acted on. A process that is in
// it is never continued without proof, and is killed when its time is over, by
// whichever daemon comes next.
//
// All methods of a Guard may be called from many goroutines. Admit is on the way
// of each grant: it reads one directory and waits for nobody, but for the first
// seconds after the start.
package guard
