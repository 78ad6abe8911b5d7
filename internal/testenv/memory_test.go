package testenv

import (
	"fmt"
	"testing"
)

// failures is a testing.TB that counts what fails.
type failures struct {
	testing.TB
	said []string
}

func (f *failures) Helper() {}
func (f *failures) Errorf(format string, a ...any) {
	f.said = append(f.said, fmt.Sprintf(format, a...))
}

var kept []byte // so that what is allocated escapes

func TestBounded(t *testing.T) {
	for size, want := range map[int]int{10: 0, 1 << 20: 0, 5 << 20: 1} {
		f := &failures{TB: t}
		Bounded(f, 10, 1000, func() { kept = make([]byte, size) })
		if len(f.said) != want {
			t.Errorf("%d bytes: %q", size, f.said)
		}
	}
}
