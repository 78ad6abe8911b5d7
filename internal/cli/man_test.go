package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra/doc"

	"github.com/vmlockd/vmlockd/internal/cli"
)

// TestExitStatuses: the help of every command has them.
func TestExitStatuses(t *testing.T) {
	for _, c := range append(cli.Root().Commands(), cli.Root()) {
		_, table, found := strings.Cut(c.Long, "Exit status:\n")
		if !found || strings.Count(table, "\n") < 3 {
			t.Errorf("%s --help does not have them", c.CommandPath())
		}
	}
}

// TestGoldens: of what every command shows there is a golden file as a table, and one as JSON.
// Each is named where it is compared.
func TestGoldens(t *testing.T) {
	var scripts strings.Builder
	for _, pattern := range []string{"testdata/script/*.txtar", "*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			scripts.Write(text)
		}
	}
	for _, c := range cli.Root().Commands() {
		for _, suffix := range []string{"txt", "json"} {
			pattern := "testdata/golden/" + c.Name() + "*." + suffix
			if c.Name() == "doctor" {
				pattern = "testdata/doctor/*." + map[string]string{"txt": "text", "json": "json"}[suffix] + ".golden"
			}
			files, err := filepath.Glob(pattern)
			if err != nil || len(files) == 0 {
				t.Errorf("%s has no golden file %s: %v", c.Name(), pattern, err)
			}
			for _, file := range files {
				base := filepath.Base(file)
				name, _, _ := strings.Cut(base, ".")
				// A table of cases has the name, and a script the file.
				if text := scripts.String(); !strings.Contains(text, base) && !strings.Contains(text, `"`+name+`"`) && !strings.Contains(text, `"`+strings.TrimSuffix(base, ".golden")+`"`) {
					t.Errorf("nothing compares %s", file)
				}
			}
		}
	}
}

// TestManPages: the pages in docs/man are what the commands say of themselves.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if *update {
		dir = "../../docs/man"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := cli.Root()
	root.InitDefaultCompletionCmd()
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC) // of every page, so that they do not change by themselves
	header := &doc.GenManHeader{Section: "8", Source: "vmlockd", Manual: "vmlockd", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(dir + "/*.8")
	if err != nil || len(made) < 8 {
		t.Fatalf("made only %q, %v", made, err)
	}
	kept, err := filepath.Glob("../../docs/man/vmlockctl*.8")
	if err != nil || len(kept) != len(made) {
		t.Errorf("docs/man has %d pages, and there should be %d: run 'make man', and remove what is left over", len(kept), len(made))
	}
	for _, path := range made {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("../../docs/man", filepath.Base(path)))
		if err != nil || string(got) != string(want) {
			t.Errorf("docs/man/%s is not current (%v): run 'make man'", filepath.Base(path), err)
		}
	}
}
