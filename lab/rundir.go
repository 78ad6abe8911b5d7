package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab/internal/supervisor"
)

// BinaryEnv names the environment variable with the path of the lab's program, for machines that
// have no Go tool chain.
const BinaryEnv = "VMLOCKD_LAB_BINARY"

// makeRunDir makes the lab's directory and returns its lock file, locked. The supervisor inherits the
// lock and holds it for life, which is how a live lab is told from what a killed one left.
func makeRunDir(name string) (string, *os.File, error) {
	if err := os.MkdirAll(RunDir, 0o700); err != nil {
		return "", nil, err
	}
	// One at a time: another Start must not take a directory for stale that has no lock yet.
	all, err := os.OpenFile(filepath.Join(RunDir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return "", nil, err
	}
	if err := removeStale(); err != nil {
		return "", nil, err
	}
	dir := filepath.Join(RunDir, name)
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
		return "", nil, &labError{kind: ErrState, message: fmt.Sprintf("a lab named %q is running; end it or choose another name", name)}
	} else if err != nil {
		return "", nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, supervisor.LockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, lock, nil
}

// removeStale removes the directories of labs whose supervisor was killed.
func removeStale() error {
	entries, err := os.ReadDir(RunDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(RunDir, e.Name())
		if held(dir) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// held says whether a supervisor holds the lab's lock.
func held(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, supervisor.LockFile), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// Running returns the names of the labs that run on this machine.
func Running() ([]string, error) {
	entries, err := os.ReadDir(RunDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && held(filepath.Join(RunDir, e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// labBinary returns the path of the lab's program, and what removes it once the supervisor has
// taken its copy.
func labBinary(path string) (string, func(), error) {
	none := func() {}
	if path == "" {
		path = os.Getenv(BinaryEnv)
	}
	if path != "" {
		return path, none, nil
	}
	dir, err := os.MkdirTemp("", "vmlockd-lab-build-")
	if err != nil {
		return "", none, err
	}
	remove := func() { os.RemoveAll(dir) }
	path = filepath.Join(dir, "lab")
	// Go's build cache makes this a matter of a second, of nothing the second time.
	// Static: it is the first program of a node, before there are libraries to rely on.
	if err := BuildProgram(path, "github.com/vmlockd/vmlockd/lab/cmd/lab", false); err != nil {
		remove()
		return "", none, fmt.Errorf("build the lab's program (or set %s to its path): %w", BinaryEnv, err)
	}
	return path, remove, nil
}
