package lab

import (
	"slices"
	"testing"
)

func TestLastWith(t *testing.T) {
	const text = "dlm: one\nother\r\ndlm: two\r\ndlm: three\nno dlm: here\n"
	if got, want := lastWith(text, "dlm: ", 2), []string{"dlm: two", "dlm: three"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := lastWith(text, "vmlockd", 2); len(got) != 0 {
		t.Errorf("%q of what is not there", got)
	}
}
