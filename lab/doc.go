// Package lab boots a real cluster on one machine: one to five nodes, each a Linux kernel with the
// DLM, the real corosync and dlm_controld and, on request, vmlockd and stock libvirt with QEMU. Tests and people
// run commands in the nodes, cut their network, freeze them, cut their power and boot them again.
//
// # How it is built
//
// The kernels are User-Mode Linux (package user-mode-linux in Debian): Linux as a process, which needs no
// virtualisation and brings the dlm module that build machines lack. Each node's root file system is this
// machine's own, under an overlay in the node's memory: a node sees the installed programs, writes wherever it
// likes, and changes nothing outside.
//
//	your test or `lab up`  --unix socket-->  supervisor  --TCP-->  agent in node 1 .. 5
//
// One supervisor process owns a lab. It has its own PID, network and mount namespace, and everything of
// the lab lives in those, so when it ends, all ends. It ends with Close, and when the process that called Start dies,
// whatever killed that. Only the logs survive.
//
// # Networks and directories
//
// Node N is 192.0.2.N for corosync, DLM and libvirt, and 198.51.100.N for the lab's own commands, which
// still work while Cut has taken the node out of the first network. [SharedDir] is one directory of all nodes;
// record locks on its files do not reach other nodes, so it behaves like a disk in a SAN, not like NFS.
// [PrivateDir] and /var/lib/vmlockd belong to one node and survive its power cut. All else in a node is gone with its power.
//
// # Concurrency
//
// All methods may be called from several goroutines. All that talk to a node end with their context; a command
// that is abandoned this way is killed in the node.
package lab
