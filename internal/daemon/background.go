package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// backgroundEnv is the environment variable by which the process that Background starts
// knows that it is one. It has the descriptor to which it writes when it is ready, or 0 when it
// has done so, also in a program that takes its place.
const backgroundEnv = "VMLOCKD_BACKGROUND"

// nullFD is what backgroundEnv says when there is nobody to tell any more.
const nullFD = "0"

// Background starts this program with args in a session of its own, and returns when it
// is ready, or with its exit status if it ends before. Until it is ready it says on stderr what is
// wrong. args must name all files by absolute paths.
func Background(args []string) (status int, err error) {
	if forThisProcess() {
		return 0, errors.New("systemd's sockets are for this process, and --daemon starts another one: leave --daemon out")
	}
	path, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find the program's own file: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), backgroundEnv+"=3") // the first of ExtraFiles
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, fmt.Errorf("start the daemon: %w", err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		return 0, nil
	} else if !errors.Is(err, io.EOF) {
		return 0, err
	}
	err = cmd.Wait()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return max(ended.ExitCode(), 1), nil // -1 after a signal
	}
	return 1, err
}

// InBackground says whether this process is one that Background has started. Then ready
// tells that it serves, and lets go of the terminal.
func InBackground() (ready func(), ok bool) {
	value, ok := os.LookupEnv(backgroundEnv)
	if !ok {
		return nil, false
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return func() {}, true
	}
	unix.CloseOnExec(fd)
	return func() {
		if os.Getenv(backgroundEnv) == nullFD {
			return // a second time
		}
		os.Setenv(backgroundEnv, nullFD)
		if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
			for std := range 3 {
				_ = unix.Dup3(int(null.Fd()), std, 0)
			}
			null.Close()
		}
		_, _ = unix.Write(fd, []byte{1})
		unix.Close(fd)
	}, true
}
