package identity_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmlockd/vmlockd/lab"
)

// captureDir is where 'make capture' wants what the kernels of the nodes say of the disks that are proved here to be one,
// or two; "" in other runs. What does it is a test of internal/identity, which is a program of the nodes then.
var captureDir = os.Getenv("VMLOCKD_CAPTURE_DIR")

const captureProgram = "capture-identity"

// captureBinary builds that program, if it is wanted.
func captureBinary(t *testing.T, binaries map[string]string) {
	t.Helper()
	if captureDir == "" {
		return
	}
	path := filepath.Join(t.TempDir(), captureProgram)
	if err := lab.BuildProgram(path, "github.com/vmlockd/vmlockd/internal/identity", true); err != nil {
		t.Fatal(err)
	}
	binaries[captureProgram] = path
}

// disk is a path on a node.
type disk struct {
	node int
	path string
}

// fact is that two paths are one disk, or not, which the test proves by locking them.
type fact struct {
	one  bool
	a, b disk
}

// one and two make facts of the paths on two nodes.
func one(a int, path string, b int, other string) fact {
	return fact{true, disk{a, path}, disk{b, other}}
}
func two(a int, path string, b int, other string) fact {
	return fact{false, disk{a, path}, disk{b, other}}
}

// capture writes a file of the trees that the nodes have at this moment, see testdata/README.md of internal/identity.
func (s *suite) capture(t *testing.T, kind, about string, facts ...fact) {
	t.Helper()
	if captureDir == "" {
		return
	}
	paths := map[int][]string{}
	var proved strings.Builder
	for _, f := range facts {
		word := "two"
		if f.one {
			word = "one"
		}
		fmt.Fprintf(&proved, "%s node%d %s node%d %s\n", word, f.a.node, f.a.path, f.b.node, f.b.path)
		for _, d := range []disk{f.a, f.b} {
			if !slices.Contains(paths[d.node], d.path) {
				paths[d.node] = append(paths[d.node], d.path)
			}
		}
	}
	kernel := strings.TrimSpace(s.sh(t, facts[0].a.node, "uname -r"))
	out := &txtar.Archive{
		Comment: []byte(fmt.Sprintf("%s\nCaptured by 'make capture' on nodes of the lab with Linux %s.\n", about, kernel)),
		Files:   []txtar.File{{Name: "proved", Data: []byte(proved.String())}},
	}
	for node := 1; node <= len(s.Nodes()); node++ {
		if paths[node] == nil {
			continue
		}
		text := s.sh(t, node, fmt.Sprintf("cd /tmp; VMLOCKD_CAPTURE='%s' VMLOCKD_CAPTURE_TO=/tmp/captured %s -test.run '^TestCapture$' >&2; cat /tmp/captured", strings.Join(paths[node], " "), captureProgram))
		for _, f := range txtar.Parse([]byte(text)).Files {
			out.Files = append(out.Files, txtar.File{Name: fmt.Sprintf("node%d/%s", node, f.Name), Data: f.Data})
		}
	}
	if err := os.WriteFile(filepath.Join(captureDir, kind+".txtar"), txtar.Format(out), 0o644); err != nil {
		t.Fatal(err)
	}
}
