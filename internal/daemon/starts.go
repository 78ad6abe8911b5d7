package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/metrics"
)

// startsFile is in run_dir and counts starts, since what counts in memory begins
// anew with each of them.
const startsFile = "starts.json"

// The points at which a crash test kills the daemon.
var (
	startsBefore  = failpoint.New("daemon.starts.rename.before")
	startsAfter   = failpoint.New("daemon.starts.rename.after")
	drainBefore   = failpoint.New("daemon.drain.rename.before")
	drainAfter    = failpoint.New("daemon.drain.rename.after")
	undrainBefore = failpoint.New("daemon.undrain.remove.before")
	undrainAfter  = failpoint.New("daemon.undrain.remove.after")
)

// maxStarts bounds what is read of it.
const maxStarts = 4096

// starts is what the file says.
type starts struct {
	Boot    string // boot id: another one makes the rest worthless
	Running bool   // nobody has stopped the daemon in order since it was started
	metrics.Starts
}

// readStarts reads what is known of this boot. What cannot be read is nothing.
func readStarts(dir, boot string) starts {
	none := starts{Boot: boot}
	f, err := os.Open(filepath.Join(dir, startsFile))
	if err != nil {
		return none
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxStarts))
	var s starts
	if err != nil || json.Unmarshal(text, &s) != nil || s.Boot != boot {
		return none
	}
	return s
}

func (s starts) write(dir string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, startsFile)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("note a start or stop: %w", err)
	}
	startsBefore.Pass()
	err = os.Rename(path+".new", path)
	startsAfter.Pass()
	return err
}

// countStart adds this start.
func countStart(dir, boot string, inPlace bool) (metrics.Starts, error) {
	s := readStarts(dir, boot)
	switch {
	case inPlace:
		s.InPlace++
	case s.Running:
		s.Crash++
	default:
		s.Fresh++
	}
	s.Running = true
	return s.Starts, s.write(dir)
}

// countStop notes that the daemon stops in order.
func countStop(dir, boot string) error {
	s := readStarts(dir, boot)
	s.Running = false
	return s.write(dir)
}
