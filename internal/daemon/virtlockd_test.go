package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// replacing is a running virtlockd of Debian, whose program vmlockd is to take the place of, in a
// /run of its own.
type replacing struct {
	*served
	place string // of the program that it executes again
	pid   int
}

func startVirtlockd(t *testing.T) *replacing {
	t.Helper()
	const real = "/usr/sbin/virtlockd"
	if _, err := os.Stat(real); err != nil || os.Geteuid() != 0 {
		if os.Getenv("VMLOCKD_LAB") != "" {
			t.Fatalf("virtlockd is needed (Debian has it in libvirt-daemon), and root to give it a /run of its own: %v", err)
		}
		t.Skipf("there is no virtlockd (Debian has it in libvirt-daemon), or this is not root, who can give it a /run of its own: %v", err)
	}
	r := &replacing{served: build(t)}
	run := filepath.Join(r.dir, "libvirt")
	r.place = filepath.Join(r.dir, "virtlockd")
	r.socket = filepath.Join(run, "virtlockd-sock")
	if err := errors.Join(os.Mkdir(run, 0o700), os.Symlink(real, r.place)); err != nil {
		t.Fatal(err)
	}
	r.configure("socket", "/run/libvirt/virtlockd-sock")
	pid := filepath.Join(r.dir, "pid")
	r.cmd = exec.Command("unshare", "--mount", "/bin/sh", "-ec",
		`mount -t tmpfs none /run; mkdir /run/libvirt; mount --bind "$1" /run/libvirt; exec "$2" -p "$3"`, "sh", run, r.place, pid)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := &strings.Builder{}
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		if t.Failed() {
			t.Logf("what it printed:\n%s", out)
		}
	})
	until(t, "virtlockd listens", func() bool {
		c, err := lockprogram.Dial(t.Context(), r.socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	text, err := os.ReadFile(pid)
	if err == nil {
		r.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil || r.pid != r.cmd.Process.Pid {
		t.Fatalf("pid file: %q, %v", text, err)
	}
	return r
}

// replaceBy puts a script in the place of virtlockd's program.
func (r *replacing) replaceBy(shell, script string) {
	r.t.Helper()
	if err := errors.Join(os.Remove(r.place), os.WriteFile(r.place, []byte("#!/bin/"+shell+"\n"+script+"\n"), 0o700)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replacing) byVmlockd() {
	// With --daemon, as many are started: it must not leave the process that has everything.
	r.replaceBy("sh", fmt.Sprintf("exec %s --daemon --config %s", r.program, filepath.Join(r.dir, "vmlockd.toml")))
}

// client is a connection of one that has registered an owner.
func (r *replacing) client(owner locking.Owner) *lockprogram.Client {
	r.t.Helper()
	c, err := lockprogram.Dial(r.t.Context(), r.socket)
	if err == nil {
		r.t.Cleanup(func() { c.Close() })
		err = c.Register(r.t.Context(), owner)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// TestReplacesVirtlockd: a running virtlockd with hundreds of locks, shared ones and lockspaces too,
// becomes vmlockd, under the same pid. Its clients notice nothing, and no other
// program can lock a disk in between.
func TestReplacesVirtlockd(t *testing.T) {
	r := startVirtlockd(t)
	web, mail := vm(t), vm(t)
	webOwner := locking.Owner{PID: int32(web.Process.Pid), ID: 1, Name: "web", UUID: [16]byte{1}}
	mailOwner := locking.Owner{PID: int32(mail.Process.Pid), ID: 2, Name: "mail", UUID: [16]byte{2}}
	forWeb, forMail := r.client(webOwner), r.client(mailOwner)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	const disks = 300
	name := func(n int) locking.Ref { return locking.Ref{Name: filepath.Join(r.dir, fmt.Sprintf("disk%d", n))} }
	for n := range disks {
		r.disk(fmt.Sprintf("disk%d", n))
		must("lock", forWeb.Acquire(ctx, name(n), 0))
	}
	shared := locking.Ref{Name: r.disk("shared")}
	must("share", forWeb.Acquire(ctx, shared, lockprogram.FlagShared))
	must("share", forMail.Acquire(ctx, shared, lockprogram.FlagShared))
	spaces := filepath.Join(r.dir, "spaces")
	must("mkdir", os.Mkdir(spaces, 0o700))
	must("lockspace", forMail.CreateLockspace(ctx, spaces))
	lease := locking.Ref{Lockspace: spaces, Name: "0123abc"}
	must("lease", forMail.Acquire(ctx, lease, lockprogram.FlagAutocreate))
	linked := r.disk("linked")
	must("link", os.Link(linked, linked+".again"))
	must("one name", forWeb.Acquire(ctx, locking.Ref{Name: linked}, 0))
	must("another name", forMail.Acquire(ctx, locking.Ref{Name: linked + ".again"}, 0)) // both exclusive, at virtlockd

	r.byVmlockd()
	stop := watchHeld(t, name(0).Name)
	r.signal(syscall.SIGUSR1)
	if f := r.event("virtlockd-replaced"); f["VMLOCKD_LOCKS"] != fmt.Sprint(disks+4) || f["VMLOCKD_PID"] != fmt.Sprint(r.pid) {
		t.Errorf("%v", f)
	}
	// The file that has two names has both owners, until one gives it back.
	r.shows(`vmlockd_locks_held{mode="exclusive"}`, fmt.Sprint(disks+3), `vmlockd_locks_held{mode="shared"}`, "2")

	// Who it is, by what it says of who holds a lock; and its new clients are as good as old ones.
	stranger := vm(t)
	for _, c := range []struct {
		ref    locking.Ref
		flags  uint32
		holder string
	}{{name(7), 0, "web"}, {shared, 0, "mail"}, {lease, lockprogram.FlagAutocreate, "mail"}, {locking.Ref{Name: linked}, 0, "web"}} {
		err := r.client(locking.Owner{PID: int32(stranger.Process.Pid), ID: 3, Name: "stranger"}).Acquire(ctx, c.ref, c.flags)
		if err == nil || !strings.Contains(err.Error(), c.holder) {
			t.Errorf("%v: %v", c.ref, err)
		}
	}
	stop()
	// The connections from before.
	must("release", forWeb.Release(ctx, name(0)))
	must("of the other", forMail.Acquire(ctx, name(0), 0))
	must("release of one share", forMail.Release(ctx, shared))
	must("share again", forMail.Acquire(ctx, shared, lockprogram.FlagShared))
	must("release of the lease", forMail.Release(ctx, lease))
	if _, err := os.Stat(filepath.Join(spaces, lease.Name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of the lease is still there: %v", err)
	}
	must("the lockspace is there", forMail.Acquire(ctx, lease, lockprogram.FlagAutocreate))

	// From here on nothing is lost when it is killed, or replaced.
	stop = watchHeld(t, name(1).Name)
	r.signal(syscall.SIGUSR1)
	if f := r.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" || f["VMLOCKD_PID"] != fmt.Sprint(r.pid) {
		t.Errorf("%v", f)
	}
	must("after a restart in place", forWeb.Release(ctx, name(2)))
	run := fmt.Sprintf("/proc/%d/root/run", r.pid)
	if _, err := os.Stat(filepath.Join(run, "libvirt")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(run, "virtlockd-restart-exec.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what virtlockd has left is still there: %v", err)
	}
	r.signal(syscall.SIGKILL)
	_ = r.cmd.Wait()
	if isFree(t, name(3).Name) || isFree(t, shared.Name) {
		t.Error("killed, it has lost a lock")
	}
	stop()
}

// TestVirtlockdGoesOn: what cannot take its place leaves it as it was, with its locks, and the
// clients do not notice.
func TestVirtlockdGoesOn(t *testing.T) {
	r := startVirtlockd(t)
	web := vm(t)
	c := r.client(locking.Owner{PID: int32(web.Process.Pid), ID: 1, Name: "web", UUID: [16]byte{1}})
	disk := locking.Ref{Name: r.disk("disk")}
	if err := c.Acquire(t.Context(), disk, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/sbin/virtlockd", r.place+virtlockdSuffix); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(r.dir, "broken.toml")
	for what, text := range map[string]string{
		"a mistake in the configuration": "nonsense = 1\n",
		"a run_dir that cannot be":       fmt.Sprintf("run_dir = %q\n", filepath.Join(r.disk("file"), "run")),
		"a cluster that is not there":    "backend = \"cluster\"\n" + fmt.Sprintf("run_dir = %q\n", filepath.Join(r.dir, "run")),
	} {
		if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		tried := filepath.Join(r.dir, "tried")
		r.replaceBy("bash", fmt.Sprintf("touch %s; exec -a %s %s --config %s", tried, r.place, r.program, broken))
		r.signal(syscall.SIGUSR1)
		until(t, what+" was tried", func() bool { return os.Remove(tried) == nil })
		// It answers again, so it is virtlockd, which says less of who has the lock.
		err := r.client(locking.Owner{PID: int32(os.Getpid()), ID: 2, Name: "mail"}).Acquire(t.Context(), disk, 0)
		if err == nil || strings.Contains(err.Error(), "web") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Release(t.Context(), disk); err != nil {
		t.Errorf("by a connection from before: %v", err)
	}
	if err := c.Acquire(t.Context(), disk, 0); err != nil {
		t.Error(err)
	}
}
