package prerequisites_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// TestReadmeCorosync has corosync read the configuration that README.md tells to
// install.
func TestReadmeCorosync(t *testing.T) {
	text := block(t, "totem {")
	corosync, err := exec.LookPath("corosync")
	if err != nil {
		if os.Getenv(lab.Env) != "" {
			t.Fatalf("corosync is needed: %v", err)
		}
		t.Skipf("corosync is not installed: %v", err)
	}
	dir := t.TempDir()
	conf, key := filepath.Join(dir, "corosync.conf"), filepath.Join(dir, "authkey")
	if err := os.WriteFile(key, make([]byte, 256), 0o600); err != nil {
		t.Fatal(err)
	}
	// The key is not this host's.
	text = strings.Replace(text, "totem {\n", "totem {\n    keyfile: "+key+"\n", 1)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(corosync, "-t", "-c", conf).CombinedOutput(); err != nil {
		t.Errorf("corosync -t: %v\n%s", err, out)
	}
}

// TestReadmeUnit: what README.md says that the unit needs is in the unit that it tells
// to install.
func TestReadmeUnit(t *testing.T) {
	unit := block(t, "[Unit]")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, needs, found := strings.Cut(string(readme), "\n* The unit needs ")
	if !found {
		t.Fatal("README.md does not say what the unit needs")
	}
	needs, _, _ = strings.Cut(needs, "\n* ")
	n := 0
	for i, word := range strings.Split(needs, "`") {
		if i%2 == 0 {
			continue
		}
		n++
		if !strings.Contains(unit, "\n"+word) {
			t.Errorf("README.md says that the unit needs %s, and the one it shows has no such line", word)
		}
	}
	if n < 5 {
		t.Errorf("README.md names %d things that the unit needs", n)
	}
}

// block is the indented text of README.md that begins with a line.
func block(t *testing.T, first string) string {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "\n    "+first+"\n")
	if !found {
		t.Fatalf("README.md has no block that begins with %q", first)
	}
	text := first + "\n"
	for line := range strings.Lines(rest) {
		line, indented := strings.CutPrefix(line, "    ")
		if !indented {
			break
		}
		text += line
	}
	return text
}
