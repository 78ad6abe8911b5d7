package prerequisites_test

import (
	"debug/elf"
	"path"
	"slices"
	"testing"
)

// TestLibraries: the programs need nothing on a host but the C library. Corosync's
// client libraries are loaded at run time, by those that use a cluster.
func TestLibraries(t *testing.T) {
	// Parts of one library since glibc 2.34, and of one package before.
	allowed := []string{"libc.so.6", "libdl.so.2", "libpthread.so.0"}
	for _, pkg := range []string{vmlockd, vmlockctl} {
		f, err := elf.Open(program(pkg))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		libraries, err := f.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s needs %v", path.Base(pkg), libraries)
		for _, l := range libraries {
			if !slices.Contains(allowed, l) {
				t.Errorf("%s needs %s, which a host may not have", path.Base(pkg), l)
			}
		}
	}
}
