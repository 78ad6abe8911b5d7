package difftest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// compare fails the test unless ours answered as theirs did. It knows the two
// differences in words; those in deeds have tests of their own.
func compare(t *testing.T, what string, theirs, ours outcome) bool {
	t.Helper()
	if len(theirs.Replies) == len(ours.Replies) {
		for i := range theirs.Replies {
			if why := align(&theirs.Replies[i].Error, &ours.Replies[i].Error); why != "" {
				t.Errorf("%s: %s", what, why)
				return false
			}
		}
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("%s (-virtlockd +vmlockd):\n%s", what, diff)
		return false
	}
	return true
}

// align checks what ours says where it may use other words than theirs, and
// then makes the words equal.
func align(theirs, ours *rpc.Error) (why string) {
	if theirs.Code != ours.Code {
		return ""
	}
	switch {
	case theirs.Code == rpc.CodeResourceBusy && strings.HasSuffix(theirs.Message, "' is locked"):
		// Ours says who holds it, after the same words.
		for _, pair := range [][2]string{{theirs.Message, ours.Message}, {theirs.Str2, ours.Str2}} {
			if rest, ok := strings.CutPrefix(pair[1], pair[0]); !ok || !strings.Contains(rest, "pid ") {
				return "a refusal that does not say who holds it after virtlockd's words: " + pair[1]
			}
		}
	case theirs.Code == rpc.CodeSystem:
		// Ours says what was tried in its own words; the kernel's are the same,
		// except that Go writes them small.
		_, kernel, ok := cutLast(theirs.Message, ": ")
		if !ok || !strings.Contains(strings.ToLower(ours.Message), strings.ToLower(kernel)) {
			return "the reason " + kernel + " is not in: " + ours.Message
		}
		if ours.Str1 != "%s" || ours.Str2 != ours.Message {
			return "str2 is not the message: " + ours.Str2
		}
	default:
		return ""
	}
	ours.Message, ours.Str2 = theirs.Message, theirs.Str2
	return ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
