package identity

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNothingIsOpened: who opens a FIFO waits for its other end, as who opens a device
// may wait for that. A look-up on this host does neither, also behind a link.
func TestNothingIsOpened(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fifo", link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, path := range []string{fifo, link} {
		id, err := newResolver(&host, Options{}).Identify(ctx, path)
		if err != nil {
			if f, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil { // lets the look-up go on
				defer f.Close()
			}
			t.Fatalf("%s: %v", path, err)
		}
		if id.Path != fifo || id.Local == "" {
			t.Errorf("%s: %+v", path, id)
		}
	}
}
