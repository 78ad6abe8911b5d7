// Package stack spares goroutines that live for one request, or one connection, the
// growth of their stacks.
package stack

import "runtime"

// grown is how much stack Grow leaves room for, in bytes. With what the caller has and
// the runtime keeps for itself (stackGuard in runtime/stack.go, 928 bytes) it makes a
// stack of 8 KiB.
const grown = 6 << 10

// Grow makes the stack of a goroutine that has just begun large enough, 8 KiB, for most of
// what a request calls. A goroutine starts with 2 KiB, and the runtime doubles that where it
// turns out to be too little: deep in a call, where each frame so far must be looked up and
// copied, and once more for the next doubling. Here there is next to nothing to copy.
//
//go:noinline
func Grow() {
	var room [grown]byte
	runtime.KeepAlive(&room)
}
