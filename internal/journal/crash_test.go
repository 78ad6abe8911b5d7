package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// What the child says of a call before it is made, and after it was.
const (
	before = "?"
	after  = "!"
)

// child uses the journal in dir from several goroutines until it is killed, and
// says so. Each lock has an ID of its own. Locks that are left by an earlier
// child stay.
func child(dir string) {
	compactMin = 8 << 10
	j, r, err := Open(dir, boot)
	if err != nil {
		fmt.Println("E", err)
		return
	}
	if os.Getenv("JOURNAL_SUSPECT") != "" {
		_, err := j.Suspect("it is held")
		if err := errors.Join(err, j.Close()); err != nil {
			panic(err)
		}
		return
	}
	if os.Getenv("JOURNAL_SETTLE") != "" {
		if err := errors.Join(j.Settled(), j.Close()); err != nil {
			panic(err)
		}
		return
	}
	if r.Damage != nil && r.Damage.Unknown {
		fmt.Println("E", r.Damage)
		return
	}
	run := os.Getenv("JOURNAL_RUN")
	out := func(mark, op, id string) {
		// One write(2), so that the line is out when the call begins.
		if _, err := os.Stdout.WriteString(mark + " " + op + " " + id + "\n"); err != nil {
			os.Exit(1) // the parent has seen enough
		}
	}
	do := func(op, id string, f func() error) {
		out(before, op, id)
		if err := f(); err != nil {
			fmt.Println("E", op, id, err)
			os.Exit(1)
		}
		out(after, op, id)
	}
	const goroutines, rounds = 3, 100
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range rounds {
				e := entry(i)
				e.ID = fmt.Sprintf("%s-%d-%d", run, g, i)
				var seq uint64
				do("intend", e.ID, func() (err error) { seq, err = j.Intend(e); return err })
				do("grant", e.ID, func() error { return j.Grant(seq) })
				if i%20 == 0 {
					do("space", e.ID, func() error { return j.AddLockspace(e.ID) })
					continue // and keep it
				}
				do("releasing", e.ID, func() error { return j.Releasing(seq) })
				do("forget", e.ID, func() error { return j.Forget(seq) })
			}
		})
	}
	wg.Wait()
	if err := j.Close(); err != nil {
		fmt.Println("E", err)
	}
	fmt.Println("done")
}

// witness is what a child's words prove about the journal.
type witness struct {
	locks  map[string]*fate
	spaces map[string]bool // whether AddLockspace returned
}

// fate of a lock: the state it certainly reached, and the one it may have.
type fate struct{ sure, maybe stage }

type stage int

const (
	absent stage = iota
	intended
	granted
	releasing
	forgotten
)

func (w *witness) hear(t *testing.T, line string) {
	f := strings.Fields(line)
	if len(f) != 3 || f[0] == "E" {
		t.Fatalf("the child says %q", line)
	}
	mark, op, id := f[0], f[1], f[2]
	if op == "space" {
		w.spaces[id] = mark == after
		return
	}
	s := map[string]stage{"intend": intended, "grant": granted, "releasing": releasing, "forget": forgotten}[op]
	if w.locks[id] == nil {
		w.locks[id] = &fate{}
	}
	w.locks[id].maybe = s
	if mark == after {
		w.locks[id].sure = s
	}
}

// check compares a journal that was opened after the child's death with its
// words, and takes what it found for certain.
func (w *witness) check(t *testing.T, r Recovered) {
	t.Helper()
	if r.Damage != nil && r.Damage.Unknown {
		t.Fatalf("damage: %v", r.Damage)
	}
	found := map[string]stage{}
	for _, e := range r.Entries {
		found[e.ID] = map[locking.EntryState]stage{
			locking.EntryIntended: intended, locking.EntryGranted: granted, locking.EntryReleasing: releasing}[e.State]
		if w.locks[e.ID] == nil {
			t.Errorf("%s is invented", e.ID)
		}
	}
	for id, f := range w.locks {
		s := found[id]
		if s == absent && f.maybe == forgotten {
			s = forgotten
		}
		if s != f.sure && s != f.maybe {
			t.Errorf("%s is at %d, want %d or %d", id, s, f.sure, f.maybe)
		}
		*f = fate{s, s}
	}
	spaces := map[string]bool{}
	for _, s := range r.Lockspaces {
		if _, ok := w.spaces[s]; !ok || spaces[s] {
			t.Errorf("lockspace %s is invented, or there twice", s)
		}
		spaces[s] = true
	}
	for s, sure := range w.spaces {
		if sure && !spaces[s] {
			t.Errorf("lockspace %s is lost", s)
		}
		w.spaces[s] = spaces[s]
		if !spaces[s] {
			delete(w.spaces, s)
		}
	}
}

// runChild lets a child work in dir, kills it after so many lines unless it is
// killed before, and returns whether it was killed at all.
func (w *witness) runChild(t *testing.T, dir, run, env string, lines int) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "JOURNAL_CHILD="+dir, "JOURNAL_RUN="+run, env)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	// It cannot be done before it is killed: no more than this fits in between, however
	// late this process gets its turn.
	_, err = unix.FcntlInt(pipe.(*os.File).Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	must(t, err)
	must(t, cmd.Start())
	in := bufio.NewReader(pipe)
	for n := 0; ; n++ {
		if n == lines {
			must(t, cmd.Process.Kill())
		}
		line, err := in.ReadString('\n')
		if err == io.EOF {
			break // a line cut short was not said
		}
		must(t, err)
		if line != "done\n" {
			w.hear(t, line)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL) {
		t.Fatal(err)
	}
	return err != nil
}

func (w *witness) reopen(t *testing.T, dir string) {
	t.Helper()
	j, r, err := Open(dir, boot)
	must(t, err)
	w.check(t, r)
	must(t, j.Close())
}

// A process that is killed at a random moment leaves what it was told was there.
func TestKilledAtRandom(t *testing.T) {
	dir := memoryDir(t)
	w := &witness{map[string]*fate{}, map[string]bool{}}
	killed := 0
	n := testenv.Rounds(t, "VMLOCKD_KILLS", 12)
	for run := range n {
		if w.runChild(t, dir, fmt.Sprint(run), "", 1+rand.IntN(1000)) {
			killed++
		}
		w.reopen(t, dir)
	}
	if killed < n*2/5 {
		t.Errorf("%d of %d children were killed in time", killed, n)
	}
}

// laterPass is one at which the journal has been in use for a while. A child that does not
// come by as often does all its work.
const laterPass = 5

// The same for each fail point, at the first pass, and the next daemon goes on from
// there until a later one.
func TestKilledAtFailPoints(t *testing.T) {
	for _, name := range failpoint.Names() {
		t.Run(name, func(t *testing.T) {
			dir := memoryDir(t)
			w := &witness{map[string]*fate{}, map[string]bool{}}
			w.prepare(t, dir, name)
			at := func(pass int) string { return fmt.Sprintf("%s=%s:%d", failpoint.Variable, name, pass) }
			if !w.runChild(t, dir, "1", at(1), -1) {
				t.Error("no child came by")
			}
			w.reopen(t, dir)
			if strings.HasPrefix(name, "journal.open.") { // once in a process
				w.runChild(t, dir, "2", "", 50)
			} else {
				w.runChild(t, dir, "2", at(laterPass), -1)
			}
			w.reopen(t, dir)
		})
	}
}

// prepare brings about what makes a child pass points of Open.
func (w *witness) prepare(t *testing.T, dir, name string) {
	switch {
	case strings.HasPrefix(name, "journal.open.truncate"):
		w.runChild(t, dir, "0", failpoint.Variable+"=journal.append.half:300", -1)
	case strings.HasPrefix(name, "journal.open.aside"):
		j, _, err := Open(dir, "another boot")
		must(t, err)
		mustIntend(t, j, entry(1))
		must(t, j.Close())
	case strings.HasPrefix(name, "journal.settled"), strings.HasPrefix(name, "journal.suspect"):
		t.Skip("a journal that is neither damaged nor new does not come to this point: TestKilledWhileDamaged and TestKilledWhileFresh kill there")
	}
}

// Damage is known until it is settled, wherever those who find it are killed.
func TestKilledWhileDamaged(t *testing.T) {
	for _, name := range failpoint.Names() {
		switch {
		case strings.HasPrefix(name, "journal.open.aside"), strings.HasPrefix(name, "journal.fresh"), strings.HasPrefix(name, "journal.settled"):
		default:
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := memoryDir(t)
			j, _ := mustOpen(t, dir)
			off := j.end
			mustIntend(t, j, entry(1))
			kept := mustIntend(t, j, entry(2))
			must(t, j.AddLockspace("/a"))
			must(t, j.Close())
			b := readFile(t, journalFile(dir))
			b[off+20] ^= 1
			must(t, os.WriteFile(journalFile(dir), b, 0o600))

			for range 2 {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), "JOURNAL_CHILD="+dir, "JOURNAL_SETTLE=1", failpoint.Variable+"="+name)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
					continue
				}
				// The second may have nothing to do any more.
				if err != nil || name == "journal.open.aside.before" {
					t.Fatalf("%v: %s", err, out)
				}
			}
			j, r := mustOpen(t, dir)
			known := r.Damage != nil && r.Damage.Unknown
			if settled := name == "journal.settled.after" || strings.HasPrefix(name, "journal.fresh.rename.after"); !known && !settled {
				t.Error("the damage is forgotten")
			}
			if len(r.Entries) != 1 || r.Entries[0].Seq != kept || len(r.Lockspaces) != 1 {
				t.Errorf("%+v", r)
			}
			files, err := os.ReadDir(dir)
			must(t, err)
			if len(files) != 3 { // journal, lock, and one that was set aside
				t.Errorf("%v", files)
			}
			must(t, j.Close())
		})
	}
}

// Whether anything was held before a new journal stays an open question until the answer is there,
// wherever those are killed who ask it.
func TestKilledWhileFresh(t *testing.T) {
	for _, verdict := range []string{"JOURNAL_SUSPECT", "JOURNAL_SETTLE"} {
		for _, name := range failpoint.Names() {
			answer := strings.HasPrefix(name, "journal.suspect") && verdict == "JOURNAL_SUSPECT" || strings.HasPrefix(name, "journal.settled") && verdict == "JOURNAL_SETTLE"
			if !answer && !strings.HasPrefix(name, "journal.fresh") && name != pointTorn.Name() {
				continue
			}
			t.Run(verdict+" "+name, func(t *testing.T) {
				dir := memoryDir(t)
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), "JOURNAL_CHILD="+dir, verdict+"=1", failpoint.Variable+"="+name)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%v: %s", err, out)
				}
				j, r := mustOpen(t, dir)
				answered := answer && strings.HasSuffix(name, ".after")
				if r.Fresh == answered {
					t.Errorf("fresh: %v", r.Fresh)
				}
				if known := r.Damage != nil && r.Damage.Unknown; known != (answered && verdict == "JOURNAL_SUSPECT") {
					t.Errorf("damage: %v", r.Damage)
				}
				must(t, j.Close())
			})
		}
	}
}
