package identity

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// captured is a file of testdata/captured: the trees of the nodes of a lab, whose files
// have the node's name before theirs, and "proved", what the lab has shown of their disks
// by locking them: "one" or "two", and then two times a node and a path.
type captured struct {
	kind   string // the file's name
	trees  map[string][]txtar.File
	proved []proved
}

type proved struct {
	one  bool
	node [2]string
	path [2]string
}

func (c captured) world(t testing.TB, node string) *world {
	t.Helper()
	w := newWorld(t, c.kind+" of "+node, c.trees[node])
	if w.listed == nil {
		w.listed = map[string][]string{} // nothing was asked of /sys, /proc or /dev, and nothing is to be
	}
	return w
}

func loadCaptures(t testing.TB) (all []captured) {
	t.Helper()
	files, err := filepath.Glob("testdata/captured/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d captured files, %v", len(files), err)
	}
	for _, file := range files {
		tree, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c := captured{kind: strings.TrimSuffix(filepath.Base(file), ".txtar"), trees: map[string][]txtar.File{}}
		for _, f := range tree.Files {
			node, name, ok := strings.Cut(f.Name, "/")
			if ok {
				c.trees[node] = append(c.trees[node], txtar.File{Name: name, Data: f.Data})
				continue
			}
			if f.Name != "proved" {
				t.Fatalf("%s: what is %s?", file, f.Name)
			}
			for line := range strings.Lines(string(f.Data)) {
				w := strings.Fields(line)
				if len(w) != 5 || w[0] != "one" && w[0] != "two" {
					t.Fatalf("%s: %q", file, line)
				}
				c.proved = append(c.proved, proved{w[0] == "one", [2]string{w[1], w[3]}, [2]string{w[2], w[4]}})
			}
		}
		all = append(all, c)
	}
	return all
}

// TestCaptured: what the lab has shown to be one disk, by locking it on two nodes, has one
// name in what was captured of them then; and what are two disks has two names, or is of one host alone.
func TestCaptured(t *testing.T) {
	kinds := map[string]bool{}
	for _, c := range loadCaptures(t) {
		t.Run(c.kind, func(t *testing.T) {
			worlds, hosts := map[string]*world{}, map[string]*Resolver{}
			for node := range c.trees {
				worlds[node] = c.world(t, node)
				hosts[node] = newResolver(worlds[node], Options{})
			}
			ones := 0
			for _, p := range c.proved {
				var id [2]Identity
				for i, node := range p.node {
					if hosts[node] == nil || worlds[node].nodes[p.path[i]].path == "" {
						t.Fatalf("there is no %s on %s", p.path[i], node)
					}
					id[i] = identify(t, hosts[node], p.path[i])
				}
				// A name that counts on one host only is no other host's.
				same := id[0].Scope == id[1].Scope && id[0].Name == id[1].Name && (id[0].Scope == Cluster || p.node[0] == p.node[1])
				// A path that names itself leads to what is held by what it is on that host.
				same = same || p.node[0] == p.node[1] && id[0].Local == id[1].Local && id[0].Local != ""
				if same != p.one {
					t.Errorf("%s on %s is %s (%s), and %s on %s is %s (%s); the lab has shown one disk: %v",
						p.path[0], p.node[0], id[0].Name, id[0].Scope, p.path[1], p.node[1], id[1].Name, id[1].Scope, p.one)
				}
				if p.one {
					ones++
					kinds[id[0].Type], kinds[id[1].Type] = true, true
				}
			}
			if ones == 0 {
				t.Error("nothing is known to be one disk, so this shows nothing")
			}
		})
	}
	// All others are in testdata/README.md, with the reason why.
	text, err := os.ReadFile("testdata/README.md")
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|").FindAllStringSubmatch(string(text), -1) {
		for _, kind := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			written[kind[1]] = true
		}
	}
	for _, kind := range slices.Concat(DeviceTypes(), slices.Sorted(maps.Keys(shared)), slices.Sorted(maps.Keys(localFS))) {
		if kinds[kind] == written[kind] {
			t.Errorf("%s: captured %v, and in testdata/README.md as one that is not: %v", kind, kinds[kind], written[kind])
		}
	}
}

// TestDesignatorsOfRealUnits: of the designators that a unit has, the kernel prefers the same.
func TestDesignatorsOfRealUnits(t *testing.T) {
	units := 0
	for _, c := range loadCaptures(t) {
		for node := range c.trees {
			w := c.world(t, node)
			for at := range w.known {
				if path.Base(at) != "vpd_pg83" {
					continue
				}
				page, err := os.ReadFile(w.dir + at)
				if err != nil {
					t.Fatal(err)
				}
				wwid, err := os.ReadFile(w.dir + path.Dir(at) + "/wwid")
				if err != nil {
					t.Fatal(err)
				}
				units++
				if got := pickDesignator(page); got == "" || got != strings.TrimSpace(string(wwid)) {
					t.Errorf("%s of %s in %s: %q, and the kernel has %q", at, node, c.kind, got, wwid)
				}
			}
		}
	}
	if units == 0 {
		t.Error("no unit has a page of designators")
	}
}
