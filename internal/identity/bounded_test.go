package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// hung is a host on which everything that leads below a directory hangs until it is
// let go.
type hung struct {
	*world
	below  string
	letGo  chan struct{}
	inside atomic.Int32
}

func (h *hung) look(path string) (node, error) {
	if n := h.nodes[path]; strings.HasPrefix(path, h.below) || strings.HasPrefix(n.path, h.below) {
		h.inside.Add(1)
		<-h.letGo
		h.inside.Add(-1)
	}
	return h.world.look(path)
}

func newHung(t *testing.T, file, below string) *hung {
	return &hung{world: loadWorld(t, file), below: below, letGo: make(chan struct{})}
}

// wantPrompt fails unless a path is identified without waiting.
func wantPrompt(t *testing.T, r *Resolver, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	begin := time.Now()
	if id, err := r.Identify(ctx, path); err != nil || id.Name == "" {
		t.Errorf("%s: %+v, %v", path, id, err)
	}
	if d := time.Since(begin); d != 0 {
		t.Errorf("%s took %v", path, d)
	}
}

// wantIdle fails unless nothing is left of look-ups.
func wantIdle(t *testing.T, r *Resolver) {
	t.Helper()
	fakeclock.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.places) != 0 || len(r.slots) != 0 {
		t.Errorf("%d mounts have look-ups still, %d in all", len(r.places), len(r.slots))
	}
}

func TestAFileSystemThatHangsDelaysNobodyElse(t *testing.T) {
	for _, tc := range []struct {
		name, file      string
		below           string   // what hangs
		asked           string   // leads there
		prompt, refused []string // others; those that lead there too
	}{
		{"its own path", "shared", "/mnt/a", "/mnt/a/web.img", []string{"/mnt/b/web.img", "/local.img"}, []string{"/mnt/a/web.img", "/mnt/a/other.img", "/images/link.img"}},
		{"a symbolic link", "shared", "/mnt/a", "/images/link.img", []string{"/mnt/b/web.img", "/local.img", "/images/local.img"}, []string{"/images/link.img", "/mnt/a/web.img"}},
		{"a link to a directory", "shared", "/mnt/a", "/images/dir/web.img", []string{"/local.img", "/images/local.img"}, []string{"/images/dir/web.img", "/mnt/a/web.img"}},
		{"a loop device", "devices", "/srv/share", "/dev/loop4", []string{"/dev/loop0", "/dev/nvme0n1", "/srv/a.img"}, []string{"/dev/loop4", "/dev/loop4p1", "/srv/share/c.img"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fakeclock.Test(t, func(t *testing.T) {
				h := newHung(t, "testdata/"+tc.file+".txtar", tc.below)
				r := newResolver(h, Options{})
				for i := range maxStuck {
					ctx, cancel := context.WithCancel(context.Background())
					go func() {
						fakeclock.Wait()
						if n := h.inside.Load(); n != int32(i+1) {
							t.Errorf("%d look-ups hang, want %d", n, i+1)
						}
						cancel()
					}()
					if id, err := r.Identify(ctx, tc.asked); !errors.Is(err, context.Canceled) || id.Name != "" {
						t.Fatalf("a look-up that hangs: %+v, %v", id, err)
					}
				}
				for _, path := range tc.refused {
					if id, err := r.Identify(context.Background(), path); !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), tc.below) || id.Name != "" {
						t.Errorf("%s is waited for: %+v, %v", path, id, err)
					}
				}
				for _, path := range tc.prompt {
					wantPrompt(t, r, path)
				}
				close(h.letGo)
				wantIdle(t, r)
				wantPrompt(t, r, tc.asked)
				wantIdle(t, r)
			})
		})
	}
}

// TestOneThatReturnsMakesRoom, though others hang still.
func TestOneThatReturnsMakesRoom(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		h := newHung(t, "testdata/shared.txtar", "/mnt/a")
		r := newResolver(h, Options{})
		ask := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := r.Identify(ctx, "/mnt/a/web.img")
			return err
		}
		for i := range maxStuck + 1 {
			if err := ask(); errors.Is(err, unix.EAGAIN) != (i == maxStuck) || err == nil {
				t.Fatalf("look-up %d: %v", i+1, err)
			}
		}
		h.letGo <- struct{}{}
		fakeclock.Wait()
		if err := ask(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one has returned, and another is not tried: %v", err)
		}
		close(h.letGo)
		wantIdle(t, r)
	})
}

// TestManyWhoAskForWhatHangs: more at once than there may be look-ups. They are all
// refused in time, and others are not kept waiting before and after.
func TestManyWhoAskForWhatHangs(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		h := newHung(t, "testdata/shared.txtar", "/mnt/a")
		r := newResolver(h, Options{})
		const patience = 10 * time.Second
		const many = 2 * maxCalls
		refused := make(chan error, many)
		for i := range many {
			path := "/mnt/a/web.img"
			if i%2 == 0 {
				path = "/images/link.img"
			}
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_, err := r.Identify(ctx, path)
				refused <- err
			}()
		}
		fakeclock.Wait()
		if n := h.inside.Load(); n != maxOfMount {
			t.Errorf("%d look-ups are in the kernel, want %d", n, maxOfMount)
		}
		wantPrompt(t, r, "/mnt/b/web.img")
		wantPrompt(t, r, "/local.img")
		begin := time.Now()
		for range many {
			if err := <-refused; !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%v", err)
			}
		}
		if d := time.Since(begin); d != patience {
			t.Errorf("the last was refused after %v", d)
		}
		wantPrompt(t, r, "/mnt/b/web.img")
		wantPrompt(t, r, "/images/local.img")
		close(h.letGo)
		wantIdle(t, r)
	})
}

// TestManyAtOnce: more than there may be at once, and none is refused.
func TestManyAtOnce(t *testing.T) {
	r := newResolver(loadWorld(t, "testdata/shared.txtar"), Options{})
	const many = 4 * maxCalls
	done := make(chan error, many)
	for i := range many {
		path := []string{"/mnt/a/web.img", "/images/link.img", "/local.img", "/images/dir/web.img"}[i%4]
		go func() {
			id, err := r.Identify(context.Background(), path)
			if err == nil && id.Name == "" {
				err = fmt.Errorf("no name: %+v", id)
			}
			done <- err
		}()
	}
	for range many {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestAContextThatHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if id, err := New(Options{}).Identify(ctx, "/"); err == nil || id.Name != "" {
		t.Errorf("%+v, %v", id, err)
	}
}

// links is a host that has symbolic links and nothing else.
type links struct {
	kernel
	to map[string]string
}

func (l links) link(path string) string { return l.to[path] }

func TestWalk(t *testing.T) {
	h := links{to: map[string]string{"/a": "/b/c", "/b/c/d": "../e", "/b/e/f": "g/./h", "/loop": "loop", "/up": "../../b"}}
	for path, want := range map[string]string{
		"/x/y":       "/x/y",
		"/x//./y/":   "/x/y",
		"/a":         "/b/c",
		"/a/d":       "/b/e",
		"/a/d/f/i":   "/b/e/g/h/i",
		"/a/..":      "/b", // of where the link leads, not of the link
		"/a/../e/..": "/b",
		"/up/e":      "/b/e",
		"/../x":      "/x",
		"/":          "/",
	} {
		w := walk{rest: path}
		for w.next(h) {
		}
		if got := w.path(); got != want {
			t.Errorf("%s leads to %s, want %s", path, got, want)
		}
	}
	w := walk{rest: "/loop"}
	for w.links < maxFollowed && w.next(h) {
	}
	if w.links != maxFollowed {
		t.Errorf("%d links of one that leads to itself", w.links)
	}
}
