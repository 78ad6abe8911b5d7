package locking_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestParseUUID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
		if got, err := locking.ParseUUID(locking.FormatUUID(u)); err != nil || got != u {
			t.Fatalf("%v: %v", got, err)
		}
	})
	for _, bad := range []string{
		"", "-", "00000000-0000-0000-0000-00000000000", "00000000-0000-0000-0000-0000000000000", "0000000000000000000000000000000000",
		"00000000-0000-0000-0000-00000000000g", "000000000-000-0000-0000-000000000000", "00000000000000000000000000000000",
	} {
		if u, err := locking.ParseUUID(bad); err == nil || u != [16]byte{} {
			t.Errorf("%q: %v, %v", bad, u, err)
		}
	}
}
