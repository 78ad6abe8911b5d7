//go:build race

package closer

// A program with the race detector sleeps for a second when it ends.
func init() { environment = append(environment, "GORACE=atexit_sleep_ms=10") }
