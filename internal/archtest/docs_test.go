package archtest

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// texts are all files of the module that may name a page of documentation, by path.
func texts(t *testing.T) map[string]string {
	t.Helper()
	kinds := []string{".md", ".go", ".toml", ".service", ".conf", ".yaml", ".yml", ".8", ""} // "": scripts and the Makefile
	found := map[string]string{}
	root := "../.."
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == "bin" || rel == "out" {
				return filepath.SkipDir
			}
			return skip(p, rel, d)
		}
		if !d.Type().IsRegular() || !slices.Contains(kinds, filepath.Ext(p)) || strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		found[filepath.ToSlash(rel)] = string(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func exists(t *testing.T, file string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join("../..", filepath.FromSlash(file)))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return err == nil
}

var (
	// docsMention is a page by its path from the root, in comments, in what programs say, and in pages.
	docsMention = regexp.MustCompile(`\b(?:docs/[\w./-]+?\.(?:md|yml|json|8)\b|docs/man\b)`)
	// installedMention is a page as the package installs it; scripts/deb puts all of docs and the README into one directory.
	installedMention = regexp.MustCompile(`/usr/share/doc/vmlockd/([\w.-]+\.md)`)
	link             = regexp.MustCompile(`\]\(([^)\s#]*)(#[^)\s]*)?\)`)
	heading          = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fence            = regexp.MustCompile("(?ms)^```.*?^```$")
	notInAnchor      = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names that GitHub gives the headings of a page.
func anchors(page string) (list []string) {
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		name := notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(h[1])), "")
		list = append(list, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return list
}

// TestDocsExist: every page that a page links to, or that a program, a comment or a unit names, is there, and so is the
// heading of a link that has one.
func TestDocsExist(t *testing.T) {
	all := texts(t)
	links, mentions := 0, 0
	for file, text := range all {
		for _, m := range docsMention.FindAllString(text, -1) {
			mentions++
			if !exists(t, m) {
				t.Errorf("%s names %s, which does not exist", file, m)
			}
		}
		for _, m := range installedMention.FindAllStringSubmatch(text, -1) {
			if mentions++; !exists(t, "docs/"+m[1]) && !exists(t, m[1]) {
				t.Errorf("%s names %s, which is in neither docs nor the root", file, m[0])
			}
		}
		if path.Ext(file) != ".md" {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			to := file
			if m[1] != "" {
				to = path.Join(path.Dir(file), m[1])
			}
			if !exists(t, to) {
				t.Errorf("%s links to %s, which does not exist", file, m[1])
			} else if m[2] != "" && !slices.Contains(anchors(all[to]), m[2]) {
				t.Errorf("%s links to %s of %s, which has no such heading", file, m[2], to)
			}
		}
	}
	if links < 50 || mentions < 50 {
		t.Errorf("only %d links and %d mentions were found", links, mentions)
	}
}

// TestReadmeLinksDocs: README.md leads to every page.
func TestReadmeLinksDocs(t *testing.T) {
	all := texts(t)
	pages := []string{"CONTRIBUTING.md", "dlm/README.md"}
	for file := range all {
		if path.Dir(file) == "docs" && path.Ext(file) == ".md" {
			pages = append(pages, file)
		}
	}
	if len(pages) < 10 {
		t.Fatalf("only %q were found", pages)
	}
	for _, page := range pages {
		if !strings.Contains(all["README.md"], "]("+page) {
			t.Errorf("README.md does not link to %s", page)
		}
	}
}

// TestAlarmsInOperations: docs/operations.md says what to do about every alarm.
func TestAlarmsInOperations(t *testing.T) {
	all := texts(t)
	alarms := regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(all["docs/alerts.yml"], -1)
	if len(alarms) < 10 {
		t.Fatalf("only %d alarms were found", len(alarms))
	}
	for _, a := range alarms {
		if !strings.Contains(all["docs/operations.md"], "\n| "+a[1]+" | ") {
			t.Errorf("docs/operations.md has no row for %s", a[1])
		}
	}
}

// TestExampleInReadme: what dlm/README.md shows of its example is in the program that the lab runs.
func TestExampleInReadme(t *testing.T) {
	all := texts(t)
	_, rest, found := strings.Cut(all["dlm/README.md"], "Its heart:\n\n```go\n")
	shown, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("dlm/README.md shows nothing of its example")
	}
	program := strings.ReplaceAll(all["dlm/clusterflock/main.go"], "\n\t", "\n")
	if !strings.Contains(program, shown) {
		t.Errorf("dlm/clusterflock/main.go has another text than dlm/README.md:\n%s", shown)
	}
}
