package deadline_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// frozenDir is on a file system that the test freezes: whoever writes to it waits
// in the kernel, and not even SIGKILL ends that.
const frozenDir = "/root/frozen"

// TestStorageHangs: what the daemon does on a host whose storage hangs - with an
// owner that cannot be ended, with requests of its own that the kernel does not
// answer, and when it is to stop meanwhile.
func TestStorageHangs(t *testing.T) {
	cfg := lab.Config{Nodes: 1, NoCluster: true, DeviceMB: 16}
	lab.Need(t, cfg)
	cfg.VMLockd = lab.Build(t, "github.com/vmlockd/vmlockd/cmd/vmlockd")
	cfg.VMLockdConfig = func(int) string { return "request_timeout = \"30s\"\n" }
	cfg.Binaries = map[string]string{"asker": lab.Build(t, "github.com/vmlockd/vmlockd/tests/deadline/asker")}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	s := &suite{Lab: lab.ForTest(t, cfg), ctx: ctx}
	s.shell(t, "mkfs.ext4 -q "+lab.Device+" && mkdir "+frozenDir+" && mount "+lab.Device+" "+frozenDir+" && mkdir "+frozenDir+"/space && touch /root/disk /root/other")
	s.logged(t, nil, 1, "vmlockd is ready") // or there is no socket yet
	t.Run("OwnerCannotBeEnded", s.ownerStuck)
	if !t.Failed() {
		t.Run("StopTwice", s.stopTwice)
	}
}

func (s *suite) shell(t *testing.T, script string) {
	t.Helper()
	if res, err := s.Node(1).Shell(s.ctx, script); err != nil || !res.OK() {
		t.Fatalf("%s: %v %v", script, res, err)
	}
}

// says waits until the process has printed a text.
func (a *asker) says(t *testing.T, text string) {
	t.Helper()
	a.s.waitFor(t, text, func() bool {
		log, err := a.Log(a.s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(log), text)
	})
}

func (s *suite) ownerStuck(t *testing.T) {
	s.shell(t, "fsfreeze --freeze "+frozenDir)
	owner := s.asker(t, 1, "owner", "stuck", "/root/disk", frozenDir+"/file")
	owner.says(t, "stuck")
	s.step(t, "the owner hangs in the kernel and has closed its connection")
	s.logged(t, nil, 1, "owner closed its connection while it holds locks: ending it")
	s.logged(t, nil, 1, "owner could not be ended: it keeps its locks")
	s.asker(t, 1, "second", "hold", "/root/disk").says(t, "'/root/disk' is locked by virtual machine asker")
	// Others are served meanwhile.
	other := s.asker(t, 1, "other", "hold", "/root/other")
	other.says(t, "has the lock")
	s.shell(t, "fsfreeze --unfreeze "+frozenDir)
	s.logged(t, nil, 1, "lock released, its owner has ended")
	third := s.asker(t, 1, "third", "hold", "/root/disk")
	third.says(t, "has the lock")
	for _, p := range []*asker{other, third} {
		s.do(t, "end "+p.Name(), func(ctx context.Context) error { return p.Signal(ctx, syscall.SIGTERM) })
		p.says(t, "released")
	}
}

func (s *suite) stopTwice(t *testing.T) {
	s.shell(t, "fsfreeze --freeze "+frozenDir)
	s.asker(t, 1, "creator", "create", frozenDir+"/space", "new").says(t, "asked")
	holder := s.asker(t, 1, "holder", "hold", "/root/disk")
	holder.says(t, "has the lock")
	daemon := s.Node(1).Service(lab.ServiceLock)
	s.do(t, "stop vmlockd", func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGTERM) })
	s.logged(t, nil, 1, "vmlockd is stopping")
	s.do(t, "stop vmlockd again", func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGTERM) })
	s.logged(t, nil, 1, "told to stop again: ending without waiting any longer; locks stay held")
	s.shell(t, "fsfreeze --unfreeze "+frozenDir)
	if _, err := daemon.Wait(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.do(t, "start vmlockd", daemon.Start)
	s.waitFor(t, "the next vmlockd to serve", func() bool {
		log, err := daemon.Log(s.ctx)
		return err == nil && strings.Count(string(log), "vmlockd is ready") == 2
	})
	s.asker(t, 1, "second-holder", "hold", "/root/disk").says(t, "'/root/disk' is locked by virtual machine asker")
	s.do(t, "end the holder", func(ctx context.Context) error { return holder.Kill(ctx) })
	s.asker(t, 1, "third-holder", "hold", "/root/disk").says(t, "has the lock")
}
