package identity

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// FuzzSysfs gives one file of a host in testdata - in /sys, /proc or /dev - any content, as a driver or a kernel of
// another version may. Every disk of that host has a name of bounded length then, or there is an error that says why not.
func FuzzSysfs(f *testing.F) {
	trees, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(trees) == 0 {
		f.Fatalf("%d trees, %v", len(trees), err)
	}
	type place struct {
		w    *world
		path string
		was  []byte
	}
	var places []place
	for _, tree := range trees {
		w := loadWorld(f, tree)
		err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			was, err := os.ReadFile(path)
			places = append(places, place{w, path, was})
			return err
		})
		if err != nil {
			f.Fatal(err)
		}
	}
	var kinds []string // files of one name mean the same, and one of each is enough to begin with
	for i, p := range places {
		if kind := filepath.Base(p.path); !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
			f.Add(uint16(i), p.was)
			f.Add(uint16(i), slices.Concat(p.was, []byte("/../\x00\xff"), p.was))
			f.Add(uint16(i), []byte{})
		}
	}
	f.Fuzz(func(t *testing.T, which uint16, content []byte) {
		p := places[int(which)%len(places)]
		if err := os.WriteFile(p.path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := os.WriteFile(p.path, p.was, 0o600); err != nil {
				t.Fatal(err)
			}
		}()
		r := newResolver(p.w, Options{Rules: p.w.rules})
		disks := p.w.want
		testenv.Bounded(t, 100*len(disks), len(content), func() {
			for _, l := range disks {
				path, _, _ := strings.Cut(l, " ")
				id, err := r.Identify(context.Background(), path)
				switch {
				case err != nil && id.Name != "" && !errors.Is(err, ErrContradiction):
					t.Errorf("%s: the name %q with the error %v", path, id.Name, err)
				case err == nil && (id.Name == "" || len(id.Steps) == 0):
					t.Errorf("%s: %+v, and no error", path, id)
				case len(id.Name) > 4096+4*len(content):
					t.Errorf("%s: a name of %d bytes", path, len(id.Name))
				}
			}
		})
	})
}
