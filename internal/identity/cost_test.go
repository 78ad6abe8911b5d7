package identity

import (
	"context"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestCost: 200 us for a plain path is what there is. A busy machine is not measured:
// the best of many rounds counts.
func TestCost(t *testing.T) {
	if testenv.WithRace {
		t.Skip("the race detector makes it several times as long; 'make unit' runs it without")
	}
	const most = 200 * time.Microsecond
	for _, tc := range []struct {
		name string
		r    *Resolver
		path string
	}{
		{"a file of this host", New(Options{}), write(t, filepath.Join(t.TempDir(), "a.img"))},
		{"a logical volume", newResolver(loadWorld(t, "testdata/lvm.txtar"), Options{}), "/dev/vg0/web"},
		{"a partition of a SCSI unit", newResolver(loadWorld(t, "testdata/scsi.txtar"), Options{}), "/dev/sdb1"},
		{"a file on NFS", newResolver(loadWorld(t, "testdata/shared.txtar"), Options{}), "/mnt/a/web.img"},
	} {
		best := time.Hour
		for range 50 {
			const each = 20
			start := time.Now()
			for range each {
				if _, err := tc.r.Identify(context.Background(), tc.path); err != nil {
					t.Fatal(err)
				}
			}
			best = min(best, time.Since(start)/each)
		}
		t.Logf("%s: %v", tc.name, best)
		if best > most {
			t.Errorf("%s takes %v, and %v is what there is for it", tc.name, best, most)
		}
	}
}

// TestNoProgramIsRun: it is all in sysfs, mountinfo and statx.
func TestNoProgramIsRun(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if p := strings.Trim(i.Path.Value, `"`); p == "os/exec" || p == "syscall" || p == "plugin" {
				t.Errorf("%s imports %s", name, p)
			}
		}
	}
}
