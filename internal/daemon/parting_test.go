package daemon

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/guard"
	"github.com/vmlockd/vmlockd/internal/logs"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// partsEnv has the directory in which a process of this program is to part.
const partsEnv = "VMLOCKD_TEST_PARTS"

// unanswered is a backend of which part asks nothing else.
type unanswered struct {
	backend
	requests int
}

func (u unanswered) Unsettled() int { return u.requests }

// parts does in this process what a start does that nobody hears, with the signals and the log of vmlockd. Time is real: left alone, part would take
// half a minute until it is sure that nobody hears it.
func parts(t *testing.T, dir string) {
	stop, told := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		close(told)
	}()
	log, err := logs.New("info", "text", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	i, _ := parting(t, unheard(silent{events: make(chan corosync.Event)}, dir), dir, log)
	i.backend, i.given = unanswered{requests: 3}, &given{told: told, toldAgain: stop}
	until(t, "the guard knows that nothing fences", func() bool { return i.guard.Status().Mode != guard.Auto })
	i.part()
	t.Error("nothing has ended it")
}

// Told to stop once, part goes on; told again, it ends the process as vmlockd --help says. The watchdog is armed still: the other hosts
// may count on it, and nobody was heard. The next start knows that, and does the same.
func TestPartToldAgain(t *testing.T) {
	if dir := os.Getenv(partsEnv); dir != "" {
		parts(t, dir)
		return
	}
	dir := t.TempDir()
	var log testenv.Log
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPartToldAgain$")
	cmd.Env = append(os.Environ(), partsEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState tells
		close(ended)
	}()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	said := func(text string) func() bool { return func() bool { return strings.Contains(log.String(), text) } }
	tell := func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatalf("%v: %s", err, log.String())
		}
	}
	device := filepath.Join(dir, "watchdog")
	until(t, "an earlier vmlockd's promise is taken back", said("its promise is kept until"))
	until(t, "the watchdog is fed", func() bool {
		b, err := os.ReadFile(device)
		return err == nil && len(b) > 0
	})
	tell()
	until(t, "it says what it does first", said("told to stop while the promise of an earlier vmlockd is taken back"))
	select {
	case <-ended:
		t.Fatalf("the first signal has ended it: %v, %s", cmd.ProcessState, log.String())
	default:
	}
	tell()
	select {
	case <-ended:
	case <-time.After(logstest.Patience):
		t.Fatalf("told again it does not end: %s", log.String())
	}
	if got := cmd.ProcessState.ExitCode(); got != 1 { // as vmlockd --help says
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	text := log.String()
	if !regexp.MustCompile(`told to stop again: ending without waiting any longer; locks stay held" signal=terminated ` +
		`waited_for="the other hosts, [^"]+" unanswered_requests=3\n$`).MatchString(text) {
		t.Errorf("its last word is not what it waited for: %s", text)
	}
	if b, err := os.ReadFile(device); err != nil || bytes.ContainsRune(b, 'V') {
		t.Errorf("the watchdog was fed and disarmed with %q, %v", b, err)
	}
	left, due, err := guard.LeftArmed(guard.File{Path: filepath.Join(dir, guardFile), Boot: "b"}, "")
	if err != nil || !due || !slices.Equal(left, []string{device}) {
		t.Errorf("the next start knows of %v, has to part: %v, %v", left, due, err)
	}
}
