// Package stress puts many owners on several lock daemons at once, on the same
// resources, and checks afterwards that what the daemons answered can be
// explained by locks that never have two owners unless all of them share.
//
// Run makes the load. It acquires exclusively and shared, releases, releases
// what is not its own, breaks connections in the middle of calls, speaks for one
// owner on several connections, and kills owners. Everything happens in one
// process, so that one clock orders all of it, and goes into a History.
//
// Check judges a History with Porcupine, each resource by itself. A call that
// was cut off, or that timed out, may have happened: at any later time, or never.
// One that the end of its daemon cut off has happened, or never will, when the
// next daemon serves. What happened stays until its owner gives it back or ends,
// as does what its owner was told of, however often daemons are killed.
//
// What is loaded is a System: daemons in this process on a simulated DLM or on
// files, or those of a lab's nodes on the kernel's DLM.
//
// A run chooses by a seed, which it prints. The same seed makes the same
// choices; what the daemons make of them depends on time as well. Environment
// variables for the tests of this package:
//
//	VMLOCKD_STRESS_SEED  the seed; otherwise a new one each time
//	VMLOCKD_STRESS_OPS   how many operations
//	VMLOCKD_STRESS_KILLS how often a daemon is killed
//	VMLOCKD_BINARY       the vmlockd for the lab; otherwise it is built
//	VMLOCKD_LAB_LOGS     where pictures of a failure go, and the lab's logs
package stress
