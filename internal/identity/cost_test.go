package identity

import (
	"context"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// counting counts what the kernel is asked.
type counting struct {
	kernel
	asked int
}

func (c *counting) at(path string) string          { c.asked++; return c.kernel.at(path) }
func (c *counting) look(path string) (node, error) { c.asked++; return c.kernel.look(path) }
func (c *counting) link(path string) string        { c.asked++; return c.kernel.link(path) }
func (c *counting) mounts(again bool) (*mountTable, error) {
	c.asked++
	return c.kernel.mounts(again)
}
func (c *counting) fsid(path string) (uint64, error) { c.asked++; return c.kernel.fsid(path) }
func (c *counting) xattr(path, name string) (string, error) {
	c.asked++
	return c.kernel.xattr(path, name)
}

// usual are disks as most hosts have them.
func usual(t testing.TB) []struct {
	name, path string
	kernel     kernel
} {
	return []struct {
		name, path string
		kernel     kernel
	}{
		{"a file of this host", write(t, filepath.Join(t.TempDir(), "a.img")), &host},
		{"a logical volume", "/dev/vg0/web", loadWorld(t, "testdata/lvm.txtar")},
		{"a partition of a SCSI unit", "/dev/sdb1", loadWorld(t, "testdata/scsi.txtar")},
		{"a file on NFS", "/mnt/a/web.img", loadWorld(t, "testdata/shared.txtar")},
	}
}

// TestAsksLittle: what a look-up costs is what it asks the kernel; BenchmarkIdentify has the time, of which 200 us
// is what there is.
func TestAsksLittle(t *testing.T) {
	const most = 20
	for _, c := range usual(t) {
		k := &counting{kernel: c.kernel}
		r := newResolver(k, Options{})
		for range 2 { // the first one fills what is kept
			k.asked = 0
			if _, err := r.Identify(context.Background(), c.path); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %d", c.name, k.asked)
		if k.asked > most || k.asked == 0 {
			t.Errorf("%s: the kernel is asked %d times, and %d are the most", c.name, k.asked, most)
		}
	}
}

func BenchmarkIdentify(b *testing.B) {
	for _, c := range usual(b) {
		b.Run(c.name, func(b *testing.B) {
			r := newResolver(c.kernel, Options{})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Identify(context.Background(), c.path); err != nil {
					b.Fatal(err)
				}
			}
		})
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
