package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/config"
)

// What a new program does that was executed in place and cannot start: it executes
// the earlier one again, from a descriptor that was kept for it, with all that it was
// given. That happens once; if the earlier one cannot start any more either, the
// process ends.

// wentBackEnv is the environment variable in which the earlier program is told why
// the new one could not start.
const wentBackEnv = "VMLOCKD_WENT_BACK"

// maxWhy bounds, in bytes, what is told.
const maxWhy = 4096

// wentBack is why this program was executed again; empty if it was not.
func wentBack() string {
	why := os.Getenv(wentBackEnv)
	os.Unsetenv(wentBackEnv)
	if why != "" {
		// The kernel has named the process after the number of a descriptor.
		name := filepath.Base(os.Args[0])
		_ = os.WriteFile("/proc/self/comm", []byte(name[:min(len(name), 15)]), 0)
	}
	return why
}

func setWentBack(why error) {
	text := strings.ToValidUTF8(strings.ReplaceAll(why.Error(), "\x00", ""), "?")
	os.Setenv(wentBackEnv, text[:min(len(text), maxWhy)])
}

func pathOf(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// leftBehind is what GoBack and EarlierConfig need of a state; all else may be what
// this program does not understand.
type leftBehind struct {
	Back   int
	Args   []string
	Config json.RawMessage
}

func readLeftBehind() (s leftBehind, err error) {
	fd, err := strconv.Atoi(os.Getenv(stateEnv))
	if err != nil {
		return s, err
	}
	data, err := readAll(fd)
	if err != nil {
		return s, err
	}
	text, _, _ := bytes.Cut(data, []byte("\n"))
	return s, json.Unmarshal(text, &s)
}

// GoBack executes the earlier program again, if there is one whose place this one has
// taken and Run has not begun to use what it left. It returns if there is none, or
// it cannot be executed.
func GoBack(why error) {
	if os.Getenv(stateEnv) == "" {
		backToVirtlockd(why)
		return
	}
	s, err := readLeftBehind()
	if err != nil || s.Back < 3 || len(s.Args) == 0 || os.Getenv(wentBackEnv) != "" {
		return
	}
	setWentBack(why)
	signal.Ignore(RestartSignals...)
	_ = syscall.Exec(pathOf(s.Back), s.Args, os.Environ())
}

// EarlierConfig is the configuration with which this program has served, if it is
// executed again because a new one could not start. What the file says now may be why.
func EarlierConfig() (c config.Config, ok bool) {
	if os.Getenv(wentBackEnv) == "" {
		return c, false
	}
	s, err := readLeftBehind()
	if err == nil {
		c, err = config.Kept(s.Config)
	}
	return c, err == nil
}

// goBack is GoBack after start has failed with why. It returns that, and more if
// there was a way back.
func (s *state) goBack(ctx context.Context, why error) error {
	if s == nil || s.back == nil {
		return why
	}
	setWentBack(why)
	// Also if this one was told to stop: the earlier one knows how.
	err := s.execute(context.WithoutCancel(ctx), ctx, pathOf(int(s.back.Fd())), s.Args, nil)
	os.Unsetenv(wentBackEnv)
	return errors.Join(why, fmt.Errorf("go back to the earlier program: %w", err))
}
