// Package peers lets the daemons of a cluster know each other and ask each other what they hold. They are the members of
// one corosync group: corosync says who is there, orders what they say, and vouches for the node that each message
// comes from. There is no port and no key of their own.
//
// # What it promises
//
// A node speaks for itself only: what a message says about who sent it does not count, corosync's word does; so a peer
// can lie about its own locks, and about nobody else's. What comes from peers is for the eyes of operators and never a
// reason to grant.
//
// No peer can stall or crash this one or make it grow. Messages have at most MaxMessage bytes, longer answers come in
// pages; lengths are checked before memory is taken, and texts are cut. Hellos and questions of one peer are limited in
// rate, and answers in bytes; what answers no question of this node's is dropped unread. Answers are made on two goroutines,
// for questions about one resource and about all, from bounded queues. A question waits for a peer until its context
// ends, and says which peers did not answer, or not to the end.
//
// Versions do not matter: fields and kinds of messages that are not known are ignored, the header never changes, and
// nothing is refused because of its version.
//
// All methods may be called from any goroutine. A question asked while there is no connection to corosync has this
// node's own answer and an error.
package peers
