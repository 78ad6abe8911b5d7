package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed libdlm/pairs.c
var libdlmSource string

// libdlmName is what the program of libdlm/pairs.c is called in the nodes.
const libdlmName = "bench-libdlm"

// buildLibdlm compiles it. Of libdlm's two libraries it takes the one without threads,
// which makes two system calls for a lock.
func buildLibdlm(ctx context.Context, work string) (string, error) {
	return buildC(ctx, work, libdlmName, libdlmSource, "dlm_lt", "libdlm-dev")
}

// buildC compiles a program in C for the nodes, which have this machine's libraries.
// The error says what is missing for that.
func buildC(ctx context.Context, work, name, source, library, pkg string) (string, error) {
	missing := func(err error, more string) error {
		return fmt.Errorf("%s, a program in C: %w%s; Debian has what it needs in gcc, libc6-dev and %s", name, err, more, pkg)
	}
	file, program := filepath.Join(work, name+".c"), filepath.Join(work, name)
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		return "", err
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", missing(err, "")
	}
	if out, err := exec.CommandContext(ctx, cc, "-O2", "-o", program, file, "-l"+library).CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "", missing(err, ": "+first)
	}
	return program, nil
}

// libdlmLoop is the program in C, which has the bare loop's lockspace too.
type libdlmLoop struct{ program string }

func (libdlmLoop) who() string { return "C program on libdlm" }

func (libdlmLoop) locksNothing() bool { return false }

func (l libdlmLoop) turn(ctx context.Context, k lockKind, clients int, window time.Duration) (turn, error) {
	mode := "EX"
	if k.shared {
		mode = "PR"
	}
	args := []string{bareSpace, k.prefix, mode, strconv.Itoa(clients), strconv.FormatInt(window.Milliseconds(), 10)}
	if k.refused {
		args = append(args, "refused")
	}
	cmd := exec.CommandContext(ctx, l.program, args...)
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return turn{}, fmt.Errorf("%s, %s: %w", l.who(), k.what, err)
	}
	t, err := turnOf(string(out))
	if err != nil {
		return turn{}, fmt.Errorf("%s says %w", l.who(), err)
	}
	t.processor = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return t, nil
}

// turnOf reads what a program in C prints: how often, and in how many nanoseconds.
func turnOf(out string) (t turn, err error) {
	if _, err := fmt.Sscan(out, &t.count, (*int64)(&t.elapsed)); err != nil {
		return turn{}, fmt.Errorf("%q: %w", out, err)
	}
	if t.count < 1 || t.elapsed <= 0 {
		return turn{}, fmt.Errorf("%q, which is nothing", out)
	}
	return t, nil
}

// newLibdlmLoop gives libdlm the devices where it looks for them, which udev would
// make. There is none in a node of the lab.
func newLibdlmLoop() (*libdlmLoop, error) {
	program, err := exec.LookPath(libdlmName)
	if err != nil {
		return nil, nil // it could not be built, which is in the report
	}
	if err := os.MkdirAll("/dev/misc", 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"dlm-control", "dlm_" + bareSpace} {
		var major, minor uint32
		if _, err := fmt.Sscanf(read(filepath.Join("/sys/class/misc", name, "dev")), "%d:%d", &major, &minor); err != nil {
			return nil, fmt.Errorf("the number of the device %s: %w", name, err)
		}
		err := unix.Mknod(filepath.Join("/dev/misc", name), unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
	}
	return &libdlmLoop{program}, nil
}
