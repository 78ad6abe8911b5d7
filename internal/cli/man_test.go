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
