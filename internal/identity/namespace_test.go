package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that ends with it, as it may get another mount
// namespace. It is not the first one, whose mounts are those in /proc/self/mountinfo.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f() // still locked when this goroutine ends
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(f) // not on the first one, which is taken
	}()
	<-done
}

// inNamespace runs f with the path by which this process sees the root of a mount
// namespace of its own in which a tmpfs is mounted at each directory.
func inNamespace(t *testing.T, f func(root string), dirs ...string) {
	t.Helper()
	inPreparedNamespace(t, func() error { return nil }, f, dirs...)
}

// inPreparedNamespace has more done in it before f, such as further mounts, which are
// gone with the namespace.
func inPreparedNamespace(t *testing.T, prepare func() error, f func(root string), dirs ...string) {
	t.Helper()
	if os.Geteuid() != 0 { // CI is root
		// 'make test' runs as root.
		t.Skip("only root may mount")
	}
	root, done, ended := make(chan string), make(chan struct{}), make(chan error, 1)
	go onOwnThread(func() {
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		for _, dir := range dirs {
			if err == nil {
				err = unix.Mount("none", dir, "tmpfs", 0, "")
			}
		}
		if err == nil {
			err = prepare()
		}
		if err == nil {
			root <- fmt.Sprintf("/proc/self/task/%d/root", unix.Gettid())
			<-done
			for _, dir := range dirs {
				err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
			}
		}
		ended <- err
		close(root)
	})
	if r, ok := <-root; ok {
		f(r)
		close(done)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// TestAnotherMountNamespace: a container's path means nothing here, but through
// /proc/PID/root it is what it is there. What is mounted there alone is not known, and
// does not become the file that has the path here.
func TestAnotherMountNamespace(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "own"), 0o700); err != nil {
		t.Fatal(err)
	}
	both := write(t, filepath.Join(dir, "both.img"))
	one := write(t, filepath.Join(dir, "own", "web.img"))
	r := newResolver(as{&host, "ext4"}, Options{})
	inNamespace(t, func(root string) {
		write(t, root+one)
		if here, there := identify(t, r, both), identify(t, r, root+both); here.Name != there.Name || there.Scope != Host {
			t.Errorf("a file of both: %+v here, %+v there", here, there)
		}
		here, there := identify(t, r, one), identify(t, r, root+one)
		if here.Local == there.Local || there.Local == "" {
			t.Errorf("two files are %s and %s", here.Local, there.Local)
		}
		if there.Scope != Cluster || !there.Doubt || !there.ByPath {
			t.Errorf("a file of that namespace alone: %+v", there)
		}
	}, filepath.Join(dir, "own"))
}
