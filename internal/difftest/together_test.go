package difftest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// TestOneFileTogether gives one file to both daemons, as two hosts with a common
// file system do while one of them has virtlockd still: each respects what the
// other has, because both lock the same byte.
func TestOneFileTogether(t *testing.T) {
	p := newPlayers(t)
	pid := children(t, 1)[0]
	p.run(register(0, pid, 1, 0))
	pair := p.pair(0)
	const exclusive, shared = 0, 1
	mode := []string{"exclusive", "shared"}
	for i, first := range pair {
		second := pair[1-i]
		for _, has := range []uint32{exclusive, shared} {
			for _, wants := range []uint32{exclusive, shared} {
				path := filepath.Join(t.TempDir(), "disk")
				must(t, os.WriteFile(path, []byte("data"), 0o600))
				do := func(c *conn, what string, s step, want rpc.Code) {
					t.Helper()
					o := c.do(s.make(c.d))
					if o.Closed || len(o.Replies) != 1 || o.Replies[0].Error.Code != want {
						t.Errorf("%s has it %s, %s wants it %s: %s: %s, want code %d",
							first.d.name, mode[has], second.d.name, mode[wants], what, brief(o), want)
					}
				}
				do(first, "the first", acquire(0, "", path, has), 0)
				if has == shared && wants == shared {
					do(second, "the second", acquire(0, "", path, wants), 0)
					do(first, "exclusive beside the second", acquire(0, "", path, exclusive), rpc.CodeResourceBusy)
					do(first, "release by the first", release(0, "", path), 0)
					do(first, "exclusive beside the second alone", acquire(0, "", path, exclusive), rpc.CodeResourceBusy)
				} else {
					do(second, "the second", acquire(0, "", path, wants), rpc.CodeResourceBusy)
					do(first, "release by the first", release(0, "", path), 0)
					do(second, "after the release", acquire(0, "", path, wants), 0)
				}
				do(second, "release by the second", release(0, "", path), 0)
				do(first, "when all is released", acquire(0, "", path, exclusive), 0)
				do(first, "at the end", release(0, "", path), 0)
				if got, err := os.ReadFile(path); err != nil || string(got) != "data" {
					t.Errorf("the file was touched: %q, %v", got, err)
				}
			}
		}
	}
}
