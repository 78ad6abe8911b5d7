// Package testenv tells tests how much of what they search or kill at random they
// are to do.
package testenv

import (
	"os"
	"strconv"
	"testing"
)

// Rounds is the number, 1 or more, in an environment variable, or usual if that is
// not set. A mistake in it ends the test.
func Rounds(t testing.TB, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no number from 1 on", variable, text)
	}
	return n
}
