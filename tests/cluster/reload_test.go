package cluster_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// What takes the place of the program on node 1, there only, for newProgramFails. The
// first is what an upgrade has put in place, and executes the second.
const (
	nextProgram = "/tmp/next/vmlockd"
	nextScript  = "/tmp/next/script"
	nextConfig  = "/tmp/next/vmlockd.toml"
)

// saysYes is a program that says that it would start, and then does what follows;
// runsNext is a vmlockd with nextConfig.
const (
	saysYes  = "case \"$*\" in *--can-take-over*) exit 0;; esac\n"
	runsNext = "exec vmlockd-next --config " + nextConfig + "\n"
)

// badProgram is a new program that does not get as far as to serve.
type badProgram struct {
	what, script, settings string
	says, why              string // in the log
}

// leaveEarlier are those after which the earlier program goes on.
var leaveEarlier = []badProgram{
	{"ends at once", "exit 7\n", "", wouldNot, "exit status 7"},
	{"refuses its configuration", saysYes + runsNext, "nonsense = 1\n", couldNot, "nonsense"},
	// It has taken the locks over by then.
	{"cannot listen", saysYes + runsNext, config + "socket = \"/etc/hostname/sock\"\n", couldNot, "not a directory"},
}

// What the log says of one that was not executed, and of one that was.
const (
	wouldNot = "the program would not start"
	couldNot = "the new program could not start"
)

// newProgramFails is about an upgrade to a program that cannot start, at each stage of
// the restart in place: the earlier one goes on, with its locks and connections. If what was
// executed is no vmlockd at all, the locks are what is left.
func newProgramFails(t *testing.T, s *suite) {
	path := s.disk(t, "reload.img", lab.CountingGuest())
	s.create(t, 1, vm("keeper", lab.Disk{Path: path}))
	other := s.disk(t, "reload-other.img", []byte("x"))
	holder, err := s.Node(1).Start(s.ctx, "reload-holder", "probe", "hold", other)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Kill(s.ctx) }) // it has ended, if all went well
	s.says(t, holder, "held")
	// QEMU keeps the one by which it has registered, for life.
	var open []string
	s.waitFor(t, "only QEMU and the holder to be connected", func() bool { open = s.connected(t, 1); return len(open) == 2 },
		func() string { return fmt.Sprint(open) })
	neverFree := s.keepTrying(t, 2, path)
	daemon := s.Node(1).Service(lab.ServiceLock)
	putBack := s.replaceProgram(t, 1)

	for _, next := range leaveEarlier {
		s.restartFails(t, next)
		if now := s.connected(t, 1); slices.ContainsFunc(open, func(c string) bool { return !slices.Contains(now, c) }) {
			t.Errorf("of the connections %v there are %v now", open, now)
		}
		s.wantHeld(t, 2, path)
		s.wantHeld(t, 1, path)
	}
	s.refusedNaming(t, 2, vm("thief", lab.Disk{Path: path}), path, 1, "keeper")
	counts(t, s, "reload.img")
	// A connection is of use only if it is served.
	s.wantHeld(t, 2, other)
	if err := holder.Signal(s.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.says(t, holder, "given back")
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.waitFree(t, ctx, 2, other)

	// It has said that it would start. Nobody else is left then who could go on.
	s.next(t, saysYes+"exit 7\n", "")
	s.restartInPlace(t, "the daemon to end", func() bool {
		st, err := daemon.Status(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return st.State != lab.ProcessRunning
	}, func() string { return "it runs" })
	if st := s.ended(t, daemon); st.Status != 7 {
		t.Fatalf("the daemon has ended with %+v", st)
	}
	s.step(t, "a new program that has ended: no daemon is left on node 1")
	s.wantHeld(t, 2, path)
	putBack()
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.waitServing(t, 1)
	s.refusedNaming(t, 2, vm("thief", lab.Disk{Path: path}), path, 1, "keeper")
	s.state(t, 1, "keeper", "running")
	neverFree()
	s.destroy(t, 1, "keeper")
	s.create(t, 2, vm("heir", lab.Disk{Path: path}))
	s.wantHeld(t, 1, path)
}

// restartFails has the daemon of node 1 restarted in place, which must fail and leave
// the earlier program in the same process.
func (s *suite) restartFails(t *testing.T, next badProgram) {
	t.Helper()
	s.next(t, next.script, next.settings)
	daemon := s.Node(1).Service(lab.ServiceLock)
	began, err := daemon.Status(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	refusals := func() int { return s.logged(t, 1, "event=restart-refused", next.says, next.why) }
	refused, restarted := refusals(), s.restarted(t, 1)
	if next.says == couldNot {
		restarted++ // the earlier one is executed again
	}
	s.restartInPlace(t, "a new program that "+next.what, func() bool {
		return refusals() > refused && s.restarted(t, 1) == restarted
	}, func() string { return fmt.Sprintf("%d refusals, %d restarts", refusals(), s.restarted(t, 1)) })
	s.waitServing(t, 1)
	now, err := daemon.Status(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if now.State != lab.ProcessRunning || now.PID != began.PID {
		t.Fatalf("the daemon was %+v and is %+v", began, now)
	}
	s.step(t, "a new program that %s: the earlier one goes on", next.what)
}

// restartInPlace has the daemon of node 1 restarted in place, once more each time that it is still working for somebody,
// and waits for what comes of it.
func (s *suite) restartInPlace(t *testing.T, what string, ok func() bool, last func() string) {
	t.Helper()
	restart := func() {
		t.Helper()
		if err := s.Node(1).Service(lab.ServiceLock).Signal(s.ctx, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	later := func() int { return s.logged(t, 1, "event=restart-refused", "try again later") }
	waited := later()
	restart()
	s.waitFor(t, what, func() bool {
		if n := later(); n > waited {
			waited = n
			restart()
		}
		return ok()
	}, last)
}

// keepTrying has a node try to get a disk again and again, until the returned function
// is called, which requires that it never got it.
func (s *suite) keepTrying(t *testing.T, node int, path string) (neverFree func()) {
	t.Helper()
	p, err := s.Node(node).Start(s.ctx, "keep-trying", "sh", "-c", `until probe try "$1"; do sleep 0.5; done`, "sh", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.SignalGroup(s.ctx, syscall.SIGKILL) })
	return func() {
		t.Helper()
		// It is an error if it has ended by itself.
		if err := p.SignalGroup(s.ctx, syscall.SIGKILL); err != nil {
			t.Errorf("node %d got the disk, or cannot try: %v", node, err)
		}
		s.ended(t, p)
		log, err := p.Log(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		refused := strings.Count(string(log), "resource busy")
		s.step(t, "node %d was refused %d times meanwhile", node, refused)
		if refused == 0 || saidLine(log, "free") {
			t.Errorf("node %d got the disk, or never asked: %s", node, log)
		}
	}
}

// ended waits for the end of a process, which must be near.
func (s *suite) ended(t *testing.T, p *lab.Process) lab.ProcessStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	st, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// says waits until a process has written a line.
func (s *suite) says(t *testing.T, p *lab.Process, line string) {
	t.Helper()
	var log []byte
	s.waitFor(t, p.Name()+" to say "+line, func() bool {
		var err error
		if log, err = p.Log(s.ctx); err != nil {
			t.Fatal(err)
		}
		return saidLine(log, line)
	}, func() string { return string(log) })
}

// saidLine reports whether a log has that line.
func saidLine(log []byte, line string) bool {
	return slices.Contains(strings.Split(string(log), "\n"), line)
}

// connected are the connections to a node's lock daemon, by the inodes of its ends.
func (s *suite) connected(t *testing.T, node int) (inodes []string) {
	t.Helper()
	table, err := s.Node(node).MustSucceed(s.ctx, "cat", "/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(table.Stdout) {
		// Num RefCount Protocol Flags Type St Inode Path; 03 is SS_CONNECTED. The client's end has no path.
		if f := strings.Fields(line); len(f) == 8 && f[5] == "03" && strings.HasSuffix(f[7], "/virtlockd-sock") {
			inodes = append(inodes, f[6])
		}
	}
	return inodes
}

// replaceProgram puts nextProgram where the daemon's program is on a node. What runs
// goes on with what it was started from.
func (s *suite) replaceProgram(t *testing.T, node int) (putBack func()) {
	t.Helper()
	if err := s.Install("vmlockd-next", binaries.vmlockd); err != nil {
		t.Fatal(err)
	}
	if err := s.Node(node).WriteFile(s.ctx, nextProgram, []byte("#!/bin/sh\n. "+nextScript+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	there := true
	shell := func(script string) {
		t.Helper()
		if res, err := s.Node(node).Shell(s.ctx, script); err != nil || !res.OK() {
			t.Errorf("%s: %v, %v", script, res, err)
			there = false
		}
	}
	shell("mount --bind " + nextProgram + " $(command -v vmlockd)")
	putBack = func() {
		if there {
			there = false
			shell("umount $(command -v vmlockd)")
		}
	}
	t.Cleanup(putBack)
	if !there {
		t.FailNow()
	}
	return putBack
}

// next says what the program does that takes the daemon's place.
func (s *suite) next(t *testing.T, script, settings string) {
	t.Helper()
	for path, text := range map[string]string{nextScript: script, nextConfig: settings} {
		if err := s.Node(1).WriteFile(s.ctx, path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
