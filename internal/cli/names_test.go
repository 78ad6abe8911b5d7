package cli

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// TestNamesOf: also of a path on a file system that hangs it is asked who has it.
func TestNamesOf(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		letGo := make(chan struct{})
		for _, tc := range []struct {
			path   string
			follow func(string) (string, error)
			want   []string
			took   time.Duration
		}{
			{"/a", func(p string) (string, error) { return p, nil }, []string{"/a"}, 0},
			{"/a", func(string) (string, error) { return "/b", nil }, []string{"/a", "/b"}, 0},
			{"/x/../a", func(p string) (string, error) { return p, nil }, []string{"/x/../a", "/a"}, 0},
			{"/gone", func(string) (string, error) { return "", errors.New("no such file") }, []string{"/gone"}, 0},
			{"/hung", func(string) (string, error) { <-letGo; return "/late", nil }, []string{"/hung"}, linksPatience},
		} {
			start := time.Now()
			if got := namesOf(tc.path, tc.follow); !slices.Equal(got, tc.want) {
				t.Errorf("%s: %q, want %q", tc.path, got, tc.want)
			}
			if took := time.Since(start); took != tc.took {
				t.Errorf("%s took %v, want %v", tc.path, took, tc.took)
			}
		}
		close(letGo)
		fakeclock.Wait()
	})
}
