package dlm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestHostNodeID(t *testing.T) {
	h, root := fakeHost(t)
	wantNone := func(when string) {
		t.Helper()
		if id, err := NodeID(h); !errors.Is(err, ErrNoNodeID) {
			t.Errorf("%s: %d, %v", when, id, err)
		}
	}
	write := func(node, file, text string) {
		t.Helper()
		dir := filepath.Join(root, "sys/kernel/config/dlm/cluster/comms", node)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wantNone("without dlm_controld")
	write("1", "local", "0\n")
	write("1", "nodeid", "1\n")
	wantNone("without this node")
	write("7", "local", "1\n")
	wantNone("without its number")
	write("7", "nodeid", "seven\n")
	wantNone("with nonsense")
	write("7", "nodeid", "7\n")
	if id, err := NodeID(h); id != 7 || err != nil {
		t.Errorf("got %d, %v", id, err)
	}
	if _, err := NodeID(struct{ Kernel }{h}); !errors.Is(err, ErrNoNodeID) {
		t.Errorf("of a kernel that cannot tell: %v", err)
	}
}
