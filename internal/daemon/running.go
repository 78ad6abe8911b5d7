package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// runningEnv is the environment variable in which a program that is asked whether it
// would start is told what the running one has; earlier versions do not set it.
const runningEnv = "VMLOCKD_RUNNING"

// running is what a restart in place can change, and what it cannot.
type running struct {
	Socket    string
	RunDir    string
	Backend   string
	Lockspace string // of the DLM; empty with another backend
	Watchdog  string // that its guard may have armed; empty if there is none
}

func runningWith(c config.Config) running {
	return running{Socket: c.Socket, RunDir: c.RunDir, Backend: c.Backend, Lockspace: lockspaceOf(c), Watchdog: watchdogOf(c)}
}

func watchdogOf(c config.Config) string {
	if guarded(c) {
		return c.Guard.Watchdog
	}
	return ""
}

func lockspaceOf(c config.Config) string {
	if c.Backend == config.BackendCluster {
		return c.Cluster.Lockspace
	}
	return ""
}

func (r running) variable() string {
	text, _ := json.Marshal(r) // strings only
	return runningEnv + "=" + string(text)
}

// sameLocks is nil if a program with this configuration finds the locks of the running
// one, and feeds its watchdog. With another run_dir it would find an empty journal, and take all that is held
// for nobody's.
func (r running) sameLocks(c config.Config) error {
	next := runningWith(c)
	for _, v := range []struct{ key, now, next string }{
		{"run_dir", r.RunDir, next.RunDir},
		{"backend", r.Backend, next.Backend},
		{"cluster.lockspace", r.Lockspace, next.Lockspace},
	} {
		if v.now != v.next && r.RunDir != "" {
			return fmt.Errorf("the configuration says %s = %q now, and the locks that are held are in %q: a restart in place cannot move them. "+
				"Undo that change; or wait until nothing is held on this host (vmlockctl drain --wait), then stop vmlockd and start it again", v.key, v.next, v.now)
		}
	}
	if r.Watchdog != "" && r.Watchdog != next.Watchdog {
		return fmt.Errorf("the configuration says guard.watchdog = %q now (\"\" also if the guard is off), and %q may be armed: a restart in place would leave it behind, and it would reset this host. "+
			"Undo that change; or stop vmlockd, which disarms it, and start it again", next.Watchdog, r.Watchdog)
	}
	return nil
}

// sameLocks is that of the program that has left the state.
func (s *state) sameLocks(c config.Config) error {
	if s == nil {
		return nil
	}
	return running{RunDir: s.RunDir, Backend: s.Backend, Lockspace: s.Lockspace}.sameLocks(c)
}

// CheckTakeOver is nil if this program would start with this configuration in the
// place of a running one, which asks that, and go on from a state of that version.
// It looks at all that can be looked at without disturbing the other.
func CheckTakeOver(c config.Config, version int) error {
	if !CanTakeOver(version) {
		return fmt.Errorf("it cannot go on from a state of version %d: stop the running one and start this one; locks stay held meanwhile", version)
	}
	var now running
	if text, ok := os.LookupEnv(runningEnv); ok {
		if err := json.Unmarshal([]byte(text), &now); err != nil {
			return fmt.Errorf("%s: %w", runningEnv, err)
		}
	}
	if err := now.sameLocks(c); err != nil {
		return err
	}
	if now.Socket != "" && now.Socket != c.Socket {
		if err := rpc.CanListen(c.Socket); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
	}
	return checkStart(c, false)
}

// checkStart is nil if this program would start with this configuration. With first there need not
// be a journal.
func checkStart(c config.Config, first bool) error {
	if err := writable(c.RunDir); err != nil {
		return fmt.Errorf("run_dir: %w", err)
	}
	boot, err := journal.BootID()
	if err != nil {
		return err
	}
	dir := filepath.Join(c.RunDir, journalDir(c))
	if err := writable(dir); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := journal.Check(dir, boot); err != nil && !(first && errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	if c.Backend == config.BackendCluster {
		if err := cluster.Present(context.Background()); err != nil {
			return fmt.Errorf("backend \"cluster\" cannot be used on this host: %w", err)
		}
	}
	return checkGuard(c)
}

// writable looks whether files can be made in a directory.
func writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("files cannot be made in %s: %w", dir, err)
	}
	return nil
}

const journalPrefix = "journal-"

// journalDir is the name in run_dir of this backend's journal: what another one holds
// cannot be taken back by this one.
func journalDir(c config.Config) string {
	name := journalPrefix + c.Backend
	if c.Backend == config.BackendCluster {
		name += "-" + c.Cluster.Lockspace
	}
	return name
}
