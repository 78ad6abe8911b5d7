// Command bench measures vmlockd where its promises have figures, beside what
// can be compared with it, in one run on one machine: Debian's virtlockd and a bare
// loop of record locks for the backend "local"; bare loops on the DLM's device and a
// program in C on libdlm for the backend "cluster". 'make bench' runs it; docs/performance.md has its results.
//
// The backend "local" is measured on this machine; virtlockd needs root, as its
// socket is in /run, which is replaced in a namespace of its own. The backend
// "cluster" is measured in a lab of two nodes, of three for a power cut and of five for
// curves (package lab), where this program runs once more, inside the nodes.
//
// Every load is bounded in number and in time. What is measured is what a client
// sees on a socket of a daemon that was started like any other, with its journal
// and its holder process.
package main
