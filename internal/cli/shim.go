package cli

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/control"
)

// The command of run is started in two steps. First there is a process of this
// program, which has the pid that the command will have, and waits: that pid gets
// the locks. When it has them it is told to go on, and executes the command. If
// this process dies before that, it ends too, and the command was never there.

// shimName is the first argument of that process. It is no command, and not for
// users.
const shimName = "-run-locked"

// Descriptors of that process.
const (
	shimGo    = 3 // read: one byte says go on, the end says do not
	shimError = 4 // write: the errno of an exec that failed; closed by one that did not
)

// shim waits for the word, and executes args[0] with args[1:], the first of which
// is its name. It returns only if that is not to be.
func shim(args []string) int {
	unix.CloseOnExec(shimGo)
	unix.CloseOnExec(shimError)
	word := os.NewFile(shimGo, "word")
	if len(args) < 2 || word == nil {
		return exitUsage
	}
	if n, err := word.Read(make([]byte, 1)); n != 1 || err != nil {
		return exitFailed
	}
	err := syscall.Exec(args[0], args[1:], os.Environ())
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = syscall.EINVAL
	}
	_, _ = unix.Write(shimError, binary.NativeEndian.AppendUint32(nil, uint32(errno)))
	return exitFailed
}

// child is the process that becomes the command.
type child struct {
	cmd    *exec.Cmd
	path   string
	word   *os.File // to say go on
	failed *os.File // to hear of an exec that failed
}

// startShim starts it. stdin, stdout and stderr are the command's.
func startShim(path string, command []string, s Streams) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	wordR, wordW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer wordR.Close()
	failedR, failedW, err := os.Pipe()
	if err != nil {
		wordW.Close()
		return nil, err
	}
	defer failedW.Close()
	cmd := exec.Command(self, append([]string{shimName, path}, command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
	cmd.ExtraFiles = []*os.File{wordR, failedW}
	if err := cmd.Start(); err != nil {
		wordW.Close()
		failedR.Close()
		return nil, err
	}
	return &child{cmd: cmd, path: path, word: wordW, failed: failedR}, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// abandon ends the process before it is the command.
func (c *child) abandon() {
	c.word.Close()
	c.failed.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// runs lets it be the command, passes signals on, and returns its exit status.
func (c *child) runs(s *signals) (int, error) {
	_, _ = c.word.Write([]byte{1}) // if it has ended, Wait says so
	c.word.Close()
	var errno [4]byte
	n, _ := io.ReadFull(c.failed, errno[:])
	c.failed.Close()
	if n == len(errno) {
		_ = c.cmd.Wait()
		return 0, failed(exitCannotRun, "cannot_run", "execute %s: %v", c.path, syscall.Errno(binary.NativeEndian.Uint32(errno[:])))
	}
	stop := s.passOn(c.cmd.Process)
	err := c.cmd.Wait()
	stop()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		return 0, failed(exitFailed, control.CodeFailed, "%v", fmt.Errorf("wait for the command: %w", err))
	}
	ws, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return exitSignal + int(ws.Signal()), nil
	}
	return c.cmd.ProcessState.ExitCode(), nil
}
