// Package lazyregexp compiles regular expressions when they are first used. A lock daemon that
// is restarted in place keeps its clients waiting until it has begun, and compiling what it may never
// use was a tenth of that.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a function that compiles the expression at its first call, and returns the same
// each time, also to many goroutines. A mistake in it is a panic of each call, so whoever declares one tests it.
func New(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
