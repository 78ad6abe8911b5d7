package journal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The last user of a journal may have given back the flock and not have ended.
func TestOpenAwaitsTheEndOfTheLastUser(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	must(t, j.Close())
	cmd := exec.Command("sleep", "1000")
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	lastUser := func(started string) {
		text := fmt.Sprintf("%d %s\n%s\n", pid, boot, started)
		must(t, os.WriteFile(filepath.Join(dir, lockName), []byte(text), 0o600))
	}
	open := func() error {
		j, _, err := Open(dir, boot)
		if err == nil {
			must(t, j.Close())
		}
		return err
	}
	defer func(ms int) { endPatience = ms }(endPatience)
	endPatience = 1

	lastUser(startTime(pid))
	if err := open(); !errors.Is(err, ErrInUse) {
		t.Fatalf("while the last user runs: %v", err)
	}
	lastUser("1") // of another process, which had the same pid
	must(t, open())
	lastUser("") // as an earlier version wrote it
	must(t, open())

	lastUser(startTime(pid))
	must(t, cmd.Process.Kill())
	endPatience = 60000
	must(t, open()) // it may be a zombie, or not even that yet
	if got := startTime(os.Getpid()); got == "" || got == startTime(1) {
		t.Errorf("this process started at %q", got)
	}
}
