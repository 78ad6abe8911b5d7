package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/identity"
)

func TestDisks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("f.toml", []byte("[[identity.rule]]\npath = \""+dir+"/own*\"\nscope = \"host\"\n[[identity.rule]]\npath = \""+dir+"/*\"\nscope = \"cluster\"\nname = \"vm/{rest}\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"own.img", "web.img"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := newDisks(c)
	ctx := context.Background()
	if id, err := d.forBackend(ctx, dir+"/web.img"); err != nil || id.Name != "rule:vm/web.img" || id.Here || !id.ByPath || id.Local == "" {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := d.forBackend(ctx, dir+"/own.img"); err != nil || !id.Here || id.Name != id.Local || id.ByPath {
		t.Errorf("%+v, %v", id, err)
	}
	// Without a DLM there is no name in it.
	if id := d.Identify(ctx, dir+"/web.img"); id.Error != "" || id.Resource != "" || id.Scope != identity.Cluster.String() || len(id.Steps) == 0 {
		t.Errorf("%+v", id)
	}
	resource := func(_ context.Context, disk cluster.Disk) (string, error) {
		if disk.Here {
			return "", errors.New("this host has no number yet")
		}
		return "r " + disk.Name, nil
	}
	d.resource.Store(&resource)
	if id := d.forPeer(ctx, dir+"/web.img"); id.Resource != "r rule:vm/web.img" || id.Scope != "cluster" || id.Path != dir+"/web.img" || len(id.Steps) == 0 {
		t.Errorf("%+v", id)
	}
	if id := d.forPeer(ctx, dir+"/own.img"); id.Resource != "" || id.Scope != "host" || id.Error != "" {
		t.Errorf("%+v", id)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if id := d.forPeer(ended, dir+"/web.img"); id.Error == "" || id.Name != "" || id.Scope != "" {
		t.Errorf("%+v", id)
	}
	if _, err := d.forBackend(ended, dir+"/web.img"); err == nil {
		t.Error("the backend is told of a disk that nobody looked at")
	}
}
