package stress

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// Environment variables that change a run: what a failed one printed as its
// seed, how many operations there shall be, and how many ends of a daemon.
const (
	seedEnv = "VMLOCKD_STRESS_SEED"
	opsEnv  = "VMLOCKD_STRESS_OPS"
	killEnv = "VMLOCKD_STRESS_KILLS"
)

// fromEnv completes o.
func fromEnv(t *testing.T, o Options) Options {
	t.Helper()
	o.Seed, o.Log = rand.Uint64(), t.Logf
	for name, set := range map[string]func(uint64){
		seedEnv: func(v uint64) { o.Seed = v },
		opsEnv:  func(v uint64) { o.Operations = int(v) },
		killEnv: func(v uint64) { o.Disturbances = int(v) },
	} {
		s := os.Getenv(name)
		if s == "" || name == killEnv && o.Disturb == nil {
			continue
		}
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		set(v)
	}
	o.Seed &= 1<<63 - 1
	return o
}

func runAndCheck(t *testing.T, s System, o Options) {
	t.Helper()
	h, err := Run(t.Context(), s, o)
	if err != nil {
		t.Errorf("%s=%d: %v", seedEnv, o.Seed, err)
	}
	start := time.Now()
	if err := Check(h, logDir(t)); err != nil {
		t.Errorf("%s=%d: %v", seedEnv, o.Seed, err)
	}
	t.Logf("the check took %v", time.Since(start).Round(time.Millisecond))
}

// logDir is where pictures of a failure go. The system's temporary directory,
// not the test's own, because they are for after the test.
func logDir(t *testing.T) string {
	dir := os.Getenv(lab.LogsEnv)
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "vmlockd-stress")
	}
	return filepath.Join(dir, t.Name())
}
