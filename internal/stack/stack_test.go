package stack

import "testing"

// deep needs some 5 KiB of stack in many frames, like a request.
//
//go:noinline
func deep(n int) int {
	var frame [64]int64
	frame[n] = int64(n)
	if n == 0 {
		return int(frame[0])
	}
	return deep(n-1) + int(frame[n])
}

// BenchmarkDeep is a goroutine that makes a deep call, and nothing else.
func BenchmarkDeep(b *testing.B) {
	for name, begin := range map[string]func(){"grown": Grow, "asItIs": func() {}} {
		b.Run(name, func(b *testing.B) {
			done := make(chan int)
			for b.Loop() {
				go func() {
					begin()
					done <- deep(9)
				}()
				<-done
			}
		})
	}
}
