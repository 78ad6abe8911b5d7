// Package stack spares goroutines that live for one request, or one connection, the
// growth of their stacks.
package stack

import "runtime"

// grown and grownToLog are how much stack the two below leave room for, in bytes. With what the
// caller has and the runtime keeps for itself (stackGuard in runtime/stack.go, 928 bytes) they make
// stacks of 8 and of 16 KiB.
const (
	grown      = 6 << 10
	grownToLog = 14 << 10
)

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

// GrowToLog is Grow for a goroutine that writes the log in the depth of a request: that needs 8 to
// 16 KiB.
//
//go:noinline
func GrowToLog() {
	var room [grownToLog]byte
	runtime.KeepAlive(&room)
}
