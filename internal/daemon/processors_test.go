package daemon

import (
	"runtime"
	"testing"
)

// slowlyTold is a backend that tells what the test says.
type slowlyTold struct {
	backend
	tell func(bool)
}

func (s *slowlyTold) TellSlow(tell func(bool)) { s.tell = tell }

func TestTuneProcessors(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	const all = 6
	before := runtime.GOMAXPROCS(all)
	defer runtime.GOMAXPROCS(before)
	var c crowd
	b := &slowlyTold{}
	undo := tuneProcessors(b, &c)
	for _, step := range []struct {
		slow, crowded bool
		want          int
	}{
		{false, false, calmProcessors},
		{true, false, all},
		{true, true, all},
		{false, true, crowdedProcessors},
		{false, false, calmProcessors},
	} {
		b.tell(step.slow)
		c.tell(step.crowded)
		if n := runtime.GOMAXPROCS(0); n != step.want {
			t.Errorf("slow %v, crowded %v: %d processors, want %d", step.slow, step.crowded, n, step.want)
		}
	}
	undo()
	if n := runtime.GOMAXPROCS(0); n != all || b.tell != nil || c.watched.Load() {
		t.Errorf("%d processors after it, want %d", n, all)
	}
}

// TestTuneProcessorsOfOne: a host that has one processor has no more for a crowd, and some for a slow file system,
// which keeps threads and not processors.
func TestTuneProcessorsOfOne(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var c crowd
	b := &slowlyTold{}
	defer tuneProcessors(b, &c)()
	c.tell(true)
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors for a crowd, want 1", n)
	}
	b.tell(true)
	if n := runtime.GOMAXPROCS(0); n != slowProcessors {
		t.Errorf("%d processors for a slow file system, want %d", n, slowProcessors)
	}
}

// TestTuneProcessorsAsTold: who sets GOMAXPROCS for the daemon means it.
func TestTuneProcessorsAsTold(t *testing.T) {
	t.Setenv("GOMAXPROCS", "3")
	before := runtime.GOMAXPROCS(0)
	var c crowd
	b := &slowlyTold{}
	defer tuneProcessors(b, &c)()
	if n := runtime.GOMAXPROCS(0); n != before || b.tell != nil || c.watched.Load() {
		t.Errorf("%d processors, want %d", n, before)
	}
}
