package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestInstalledDocs: every link of a page in /usr/share/doc/vmlockd leads to a file that is installed there, or to the
// source of one that is not.
func TestInstalledDocs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "usr/share/doc/vmlockd")
	if out, err := exec.Command("../../scripts/deb-docs", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(read(t, "../../scripts/deb"), `scripts/deb-docs "$root/$doc"`) {
		t.Error("scripts/deb does not install these pages")
	}
	pages, err := filepath.Glob(dir + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	homepage := regexp.MustCompile(`(?m)^homepage: (.*)$`).FindStringSubmatch(read(t, packaging+"nfpm.yaml"))
	if homepage == nil {
		t.Fatal("the package has no homepage")
	}
	source := homepage[1] + "/blob/main/"
	link := regexp.MustCompile(`\]\(([^)\s#]+)(?:#[^)\s]*)?\)`)
	here, there := 0, 0
	for _, page := range pages {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			to := filepath.Join(dir, m[1])
			if file, ok := strings.CutPrefix(m[1], source); ok {
				there++
				to = filepath.Join("../..", file)
			} else if strings.Contains(m[1], "://") {
				continue
			} else {
				here++
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s: %v", filepath.Base(page), m[1], err)
			}
			if !strings.Contains(m[1], "://") && strings.HasPrefix(m[1], "..") {
				t.Errorf("%s links to %s, which is another package's", filepath.Base(page), m[1])
			}
		}
	}
	if here < 50 || there < 5 {
		t.Errorf("only %d links to pages and %d to the source were found", here, there)
	}
	for _, name := range []string{"README.md", "install.md", "virtlockd.md", "guard.md"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
