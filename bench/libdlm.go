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

// buildLibdlm compiles the program in C for the nodes, which have this machine's
// libraries. The error says what is missing for that.
func buildLibdlm(ctx context.Context, work string) (string, error) {
	const remedy = "; Debian has it in gcc, libc6-dev and libdlm-dev"
	source, program := filepath.Join(work, "libdlm-pairs.c"), filepath.Join(work, libdlmName)
	if err := os.WriteFile(source, []byte(libdlmSource), 0o600); err != nil {
		return "", err
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", fmt.Errorf("a program in C on libdlm beside vmlockd: %w"+remedy, err)
	}
	// Of the two libraries the one without threads, which makes two system calls for a lock.
	if out, err := exec.CommandContext(ctx, cc, "-O2", "-o", program, source, "-ldlm_lt").CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("a program in C on libdlm beside vmlockd: %w: %s"+remedy, err, first)
	}
	return program, nil
}

// libdlmLoop is the program in C, which has the bare loop's lockspace too.
type libdlmLoop struct{ program string }

func (libdlmLoop) who() string { return "C program on libdlm" }

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
	var t turn
	if _, err := fmt.Sscan(string(out), &t.count, (*int64)(&t.elapsed)); err != nil {
		return turn{}, fmt.Errorf("%s says %q: %w", l.who(), out, err)
	}
	t.processor = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
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
