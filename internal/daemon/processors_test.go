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
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	b := &slowlyTold{}
	undo := tuneProcessors(b)
	for _, step := range []struct {
		slow bool
		want int
	}{{false, calmProcessors}, {true, max(before, slowProcessors)}, {false, calmProcessors}} {
		b.tell(step.slow)
		if n := runtime.GOMAXPROCS(0); n != step.want {
			t.Errorf("slow %v: %d processors, want %d", step.slow, n, step.want)
		}
	}
	undo()
	if n := runtime.GOMAXPROCS(0); n != before || b.tell != nil {
		t.Errorf("%d processors after it, want %d", n, before)
	}
}

// TestTuneProcessorsAsTold: who sets GOMAXPROCS for the daemon means it.
func TestTuneProcessorsAsTold(t *testing.T) {
	t.Setenv("GOMAXPROCS", "3")
	before := runtime.GOMAXPROCS(0)
	b := &slowlyTold{}
	defer tuneProcessors(b)()
	if n := runtime.GOMAXPROCS(0); n != before || b.tell != nil {
		t.Errorf("%d processors, want %d", n, before)
	}
}
