package chaos_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/tests/stress"
)

// storage has the files of writers.
type storage struct {
	t     *testing.T
	dir   string
	began time.Time
}

func newStorage(t *testing.T) *storage {
	return &storage{t: t, dir: t.TempDir(), began: time.Now().Add(-time.Hour).Truncate(time.Second)}
}

func (s *storage) file(name string, at time.Duration) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, s.began.Add(at)); err != nil {
		s.t.Fatal(err)
	}
}

// turn makes the files of one that has the lock from a moment to another one, and gives it back then or not.
func (s *storage) turn(who string, n int, from, to time.Duration, gives bool) {
	s.t.Helper()
	prefix := fmt.Sprintf("%s-%04d-", who, n)
	s.file(prefix+"asks", from-100*time.Millisecond)
	s.file(prefix+"held", from)
	for i := 1; from+time.Duration(i)*50*time.Millisecond <= to; i++ {
		s.file(fmt.Sprintf("%s%06d", prefix, i), from+time.Duration(i)*50*time.Millisecond)
	}
	if gives {
		s.file(prefix+"gives", to)
		s.file(prefix+"gave", to+20*time.Millisecond)
	}
}

// judged returns what both judges say.
func (s *storage) judged(writers ...writer) (pairs [][2]hold, porcupine error) {
	s.t.Helper()
	holds, err := readHolds(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	return overlaps(holds), stress.Check(history(s.began, 0, holds, writers), "")
}

const sec = time.Second

func TestJudgeLetsGoodOnesPass(t *testing.T) {
	s := newStorage(t)
	s.turn("n1-1", 1, 1*sec, 3*sec, true)
	s.turn("n2-1", 1, 4*sec, 6*sec, false) // ended with it
	s.turn("n1-1", 2, 8*sec, 9*sec, true)
	s.file("n2-2-0001-asks", 8*sec) // never had it
	s.turn("n3-1", 1, 10*sec, 12*sec, false)
	writers := []writer{{who: "n1-1", node: 1}, {who: "n2-1", node: 2, ended: s.began.Add(7 * sec)}, {who: "n2-2", node: 2}, {who: "n3-1", node: 3}}
	pairs, err := s.judged(writers...)
	if len(pairs) > 0 || err != nil {
		t.Fatalf("%v, %v", pairs, err)
	}
	holds, err := readHolds(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(holds) != 4 || holds[1].who != "n2-1" || holds[1].records != 40 || holds[3].turn != 1 {
		t.Errorf("read %+v", holds)
	}
	if p := longestPause(s.began, s.began.Add(20*sec), holds); p.length() != 10*sec || !p.from.Equal(s.began.Add(10*sec)) {
		t.Errorf("the longest pause is %+v", p)
	}
	if list := takeOvers(holds, writers); len(list) != 1 || list[0] != 2*sec {
		t.Errorf("take-overs: %v", list)
	}
}

func TestJudgeFindsOverlap(t *testing.T) {
	for name, c := range map[string]struct {
		old, next time.Duration // the end of one, and the begin of the other
		gone      time.Duration // when the first was gone
	}{
		"goes on writing after its loss": {7 * sec, 5 * sec, 8 * sec},
		"by a moment":                    {5*sec + 50*time.Millisecond, 5 * sec, 8 * sec},
	} {
		s := newStorage(t)
		s.turn("n3-1", 1, 1*sec, c.old, false)
		s.turn("n1-1", 1, c.next, 9*sec, false)
		pairs, err := s.judged(writer{who: "n3-1", node: 3, ended: s.began.Add(c.gone)}, writer{who: "n1-1", node: 1})
		if len(pairs) != 1 || pairs[0][0].who != "n3-1" {
			t.Errorf("%s: %v", name, pairs)
		}
		if err == nil || !strings.Contains(err.Error(), "acquire") {
			t.Errorf("%s: Porcupine: %v", name, err)
		}
	}
}

// TestPorcupineFindsMore: nobody has written too late, but a lock was granted that
// another one had neither given back nor lost.
func TestPorcupineFindsMore(t *testing.T) {
	s := newStorage(t)
	s.turn("n3-1", 1, 1*sec, 2*sec, false)
	s.file("n3-1-0001-gives", 5*sec)
	s.file("n3-1-0001-gave", 5*sec+20*time.Millisecond)
	s.turn("n1-1", 1, 3*sec, 4*sec, true)
	pairs, err := s.judged(writer{who: "n3-1", node: 3}, writer{who: "n1-1", node: 1})
	if len(pairs) != 0 || err == nil {
		t.Errorf("%v, and Porcupine: %v", pairs, err)
	}
}

func TestForeignFilesAreNoRecords(t *testing.T) {
	for _, name := range []string{"n1-1-0001-000001", "n1-1-0001-gives", "else", "n1-1-0001-"} {
		s := newStorage(t)
		s.file(name, sec)
		if list, err := readHolds(s.dir); err == nil {
			t.Errorf("%s: %+v", name, list)
		}
	}
}

// That a kernel hangs both it and vmlockd of the same host must say, and nobody is excused by half of it.
func TestKernelHang(t *testing.T) {
	begun := []string{"dlm: vmlockd: dlm_recover 5"}
	st := func(waits string) *control.Status {
		return &control.Status{Cluster: &control.Cluster{Lockspace: control.DLMLockspace{WaitsFor: waits}}}
	}
	const hangs = "the cluster's membership, for 25 s now: the kernel of a host hangs in it"
	for name, tc := range map[string]struct {
		said []string
		st   *control.Status
		hung bool
	}{
		"both say so":                     {begun, st(hangs), true},
		"its kernel is at the end":        {nil, st(hangs), false},
		"vmlockd waits for a moment only": {begun, st("the cluster's membership"), false},
		"vmlockd is well":                 {begun, st(""), false},
		"vmlockd does not answer":         {begun, nil, false},
	} {
		if got := hung(2, tc.said, tc.st); (got != "") != tc.hung || tc.hung && !strings.Contains(got, "node 2") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
