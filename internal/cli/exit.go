package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/control"
)

// The exit statuses. What run has to say of itself is runOffset higher, so that
// it is not taken for what its command says.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNoDaemon   = 3
	exitRefused    = 4
	exitIncomplete = 5
	exitWarnings   = 6
	exitFaults     = 7
	exitDiffer     = 8

	exitInterrupted = exitSignal + 2 // as a shell says it of SIGINT, also for SIGTERM

	runOffset     = 120
	exitCannotRun = 126
	exitNoCommand = 127
	exitSignal    = 128
)

// exits is what --help says of them.
var exits = map[int]string{
	exitOK:         "success",
	exitFailed:     "failed, the message says why",
	exitUsage:      "the command line is wrong",
	exitNoDaemon:   "vmlockd does not run or does not answer",
	exitRefused:    "refused: the lock is held, or its owner or host may be alive",
	exitIncomplete: "some hosts did not answer, the rest is shown",
	exitWarnings:   "doctor found warnings, or could not look at something",
	exitFaults:     "doctor found a fault",
	exitDiffer:     "identify found hosts that take a path for different disks",

	exitInterrupted: "interrupted",
}

// asked are those of a command that asks the daemon, and some more.
func asked(more ...int) string {
	m := map[int]string{}
	for _, k := range append(more, exitOK, exitFailed, exitUsage, exitNoDaemon, exitInterrupted) {
		m[k] = exits[k]
	}
	return "\n\n" + exitHelp(m)
}

// runExits are those of run.
var runExits = map[int]string{
	runOffset + exitFailed:   exits[exitFailed],
	runOffset + exitUsage:    exits[exitUsage],
	runOffset + exitNoDaemon: exits[exitNoDaemon],
	runOffset + exitRefused:  "a lock was refused, and the command was not started",
	exitCannotRun:            "the command cannot be executed",
	exitNoCommand:            "the command was not found",
	exitSignal:               "and above: the command was ended by signal (status - 128)",
}

func exitHelp(m map[int]string) string {
	var keys []int
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	b.WriteString("Exit status:\n")
	for _, k := range keys {
		fmt.Fprintf(&b, "  %-3d  %s\n", k, m[k])
	}
	return strings.TrimRight(b.String(), "\n")
}

// failure is an error with its exit status, and a code for --json.
type failure struct {
	status int
	err    control.Error
}

func (f *failure) Error() string { return f.err.Message }

func failed(status int, code, format string, args ...any) error {
	return &failure{status, control.Error{Code: code, Message: fmt.Sprintf(format, args...)}}
}

func usage(format string, args ...any) error {
	return failed(exitUsage, "usage", format, args...)
}

// asFailure finds the exit status of any error.
func asFailure(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var e *control.Error
	if errors.As(err, &e) {
		status := exitFailed
		switch e.Code {
		case control.CodeUnavailable:
			status = exitNoDaemon
		case control.CodeBadRequest:
			status = exitUsage
		case control.CodeOwnerLives, control.CodeNodeMember, control.CodeNotNow:
			status = exitRefused
		}
		return &failure{status, *e}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &failure{exitNoDaemon, control.Error{Code: control.CodeUnavailable, Message: "vmlockd did not answer in time"}}
	}
	if errors.Is(err, context.Canceled) {
		return &failure{exitInterrupted, control.Error{Code: "interrupted", Message: "interrupted"}}
	}
	return &failure{exitFailed, control.Error{Code: control.CodeFailed, Message: err.Error()}}
}

// code is that of an error of the daemon, or "".
func code(err error) string {
	var e *control.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
