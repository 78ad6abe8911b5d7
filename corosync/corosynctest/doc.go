// Package corosynctest is a corosync cluster in memory, for tests: several nodes, their processes, groups, quorum and
// cmap, behind the same port as the real one. It knows
//
//   - total order: all members of a group get the same messages and memberships in the same order;
//   - joining, leaving, the death of a process, the end and the start of a node's corosync, the loss of a node,
//     partitions and their healing, each with the reasons that corosync gives;
//   - quorum by majority, ring ids, the nodes that joined and left;
//   - a corosync that is stopped, so that calls hang; one that is busy, so that they are to be tried again; a process that
//     does not take its events;
//   - messages that somebody else sends, in the name of any member.
//
// It does what package conformance finds corosync 3.1.7 to do. It differs in that nothing takes time: what a node should
// notice it has noticed when the call that caused it returns, and fits in before or after any message as a whole.
//
// Everything is guarded by one mutex of the Cluster, and no goroutines are started, so that it works in a
// testing/synctest bubble, where all its waiting is durable.
package corosynctest
