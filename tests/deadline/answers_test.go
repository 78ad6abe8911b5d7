package deadline_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// answer is a line of asker.
type answer struct {
	begun time.Time
	took  time.Duration
	text  string
}

func (a answer) end() time.Time { return a.begun.Add(a.took) }

// asker is a running asker in a node.
type asker struct {
	*lab.Process
	s *suite
}

func (s *suite) asker(t *testing.T, node int, name string, args ...string) *asker {
	t.Helper()
	if s.again > 0 {
		name = fmt.Sprintf("%s-again%d", name, s.again) // its log is its own
	}
	p, err := s.Node(node).Start(s.ctx, name, "asker", args...)
	if err != nil {
		t.Fatal(err)
	}
	return &asker{p, s}
}

// end tells it to end, and waits until it has.
func (a *asker) end(t *testing.T) {
	t.Helper()
	a.s.do(t, "end "+a.Name(), func(ctx context.Context) error {
		if err := a.Signal(ctx, syscall.SIGTERM); err != nil {
			return err
		}
		_, err := a.Process.Wait(ctx)
		return err
	})
}

// serves waits until something is granted on a node that has been booted: who asks only
// once may be told that it has not joined yet.
func (s *suite) serves(t *testing.T, node int, name string) {
	t.Helper()
	a := s.asker(t, node, name, "every", "500ms", name)
	a.wait(t, 1, time.Time{}, "granted")
	a.end(t)
}

// answers are all lines so far, by the time of the question.
func (a *asker) answers(t *testing.T) []answer {
	t.Helper()
	log, err := a.Log(a.s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var list []answer
	for line := range strings.Lines(string(log)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(f) != 3 {
			continue
		}
		begun, err1 := strconv.ParseInt(f[0], 10, 64)
		took, err2 := strconv.ParseInt(f[1], 10, 64)
		if err1 == nil && err2 == nil {
			list = append(list, answer{time.UnixMilli(begun), time.Duration(took) * time.Millisecond, f[2]})
		}
	}
	slices.SortStableFunc(list, func(a, b answer) int { return a.begun.Compare(b.begun) })
	return list
}

// wait waits until n answers that came since then have the text, and returns the
// last of them.
func (a *asker) wait(t *testing.T, n int, since time.Time, text string) answer {
	t.Helper()
	var last answer
	a.s.waitFor(t, fmt.Sprintf("%d answers %q of %s", n, text, a.Name()), func() bool {
		found := 0
		for _, got := range a.answers(t) {
			if got.begun.After(since) && strings.Contains(got.text, text) {
				last = got
				found++
			}
		}
		return found >= n
	})
	return last
}

// areFree checks that nobody keeps what an asker was refused: another node takes
// each disk that it has asked for, and gives it back. The asker ends.
func (s *suite) areFree(t *testing.T, node int, a *asker, prefix string) {
	t.Helper()
	a.end(t)
	list := a.answers(t) // one for each disk
	refused := 0
	for _, got := range list {
		if got.text != "granted" {
			refused++
		}
	}
	if refused == 0 {
		t.Errorf("%s was refused nothing", a.Name())
	}
	s.step(t, fmt.Sprintf("%s has asked for %d disks, and was refused %d: node %d takes each of them", a.Name(), len(list), refused, node))
	s.asker(t, node, "free-"+a.Name(), "free", prefix, strconv.Itoa(len(list))).says(t, "all free")
}

const (
	// deadline is what the daemon promises for a refusal.
	deadline = time.Second
	// atMost is what no excuse makes longer.
	atMost = 3 * time.Second
)

// inTime checks that every answer begun since from, and not answered before it,
// came within a second, counted from then on. All nodes share this machine's
// processors, so time in which the node stood still does not count. It counts
// double off, because who measures it does next to nothing and so is served
// before a daemon that has many to answer.
func inTime(t *testing.T, answers, watched []answer, from time.Time) {
	t.Helper()
	n, worst := 0, time.Duration(0)
	for _, a := range answers {
		begun := a.begun
		if begun.Before(from) {
			begun = from
		}
		took := a.end().Sub(begun)
		if took < 0 {
			continue
		}
		for _, w := range watched {
			if w.text == "paused" {
				took -= 2 * max(earlier(a.end(), w.end()).Sub(later(begun, w.begun)), 0)
			}
		}
		n++
		worst = max(worst, a.end().Sub(begun))
		if all := a.end().Sub(begun); took > deadline || all > atMost {
			t.Errorf("answered after %v, or %v but for the node's pauses: %s", all, took, a.text)
		}
	}
	t.Logf("%d answers, the slowest after %v", n, worst)
	if n == 0 {
		t.Error("no answers")
	}
}

// pause is how long a program must have had no processor for it to be said, as in
// asker.
const pause = 25 * time.Millisecond

// ownPauses notes when this program stood still, as "asker watch" does in a node,
// until the returned function is called.
func ownPauses() (end func() []answer) {
	var list []answer
	stop := make(chan struct{})
	var noting sync.WaitGroup
	noting.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			now := time.Now()
			if took := now.Sub(last); took > pause {
				list = append(list, answer{last, took, "paused"})
			}
			last = now
		}
	})
	return func() []answer {
		close(stop)
		noting.Wait()
		return list
	}
}

// either has the pauses of both lists, and the time that is in both once.
func either(a, b []answer) []answer {
	var list []answer
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, func(a, b answer) int { return a.begun.Compare(b.begun) })
	for _, p := range all {
		if p.text != "paused" {
			continue
		}
		if n := len(list); n > 0 && !p.begun.After(list[n-1].end()) {
			last := &list[n-1]
			last.took = later(last.end(), p.end()).Sub(last.begun)
			continue
		}
		list = append(list, p)
	}
	return list
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
