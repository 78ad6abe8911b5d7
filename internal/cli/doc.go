// Package cli is vmlockctl: one command in each file, which asks the daemon
// through its control socket and shows the answer as text or as JSON. Only run
// uses the socket of libvirt too, because it takes locks as libvirt does.
//
// With --json the output is one JSON value, the daemon's own answer or
// {"error":{"code":...,"message":...}}; watch writes one in each line, and run
// says errors on stderr because stdout is its command's. Text for people has no
// control characters from outside in it: names come from clients of the daemon.
package cli
