package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestToldToStopDuringRestart: a signal to stop that comes between the check of the new
// program and its execution is obeyed. The daemon runs in this process: if the
// program were executed all the same, this test would end with its status 7.
func TestToldToStopDuringRestart(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.RunDir, c.Socket, c.ControlSocket = filepath.Join(dir, "run"), filepath.Join(dir, "sock"), filepath.Join(dir, "control")
	c.AuditLog = filepath.Join(dir, "audit.log")
	program := filepath.Join(dir, "new")
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--%s*) exit 0;; esac\nexit 7\n", TakeOverFlag)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer failpoint.Find("daemon.keep.before").Arm(1, cancel)()
	var log testenv.Log
	p := Program{Path: program, Args: []string{program}, Config: func() (config.Config, error) { return c, nil }}
	done := make(chan error, 1)
	go func() { done <- Run(ctx, p, c, slog.New(slog.NewTextHandler(&log, nil))) }()
	until(t, "the daemon is ready", func() bool { return strings.Contains(log.String(), "event=daemon-ready") })
	open, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	text := log.String()
	if !strings.Contains(text, "told to stop during a restart in place") || !strings.Contains(text, "event=daemon-stopped") {
		t.Errorf("the log: %s", text)
	}
}

// TestToldToStopAtTheLastMoment: what comes too late for the earlier program reaches the
// new one.
func TestToldToStopAtTheLastMoment(t *testing.T) {
	for _, told := range []bool{true, false} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if told {
			_, _ = w.Write([]byte{1})
		}
		w.Close()
		end, err := unix.Dup(int(r.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		leave(t, []byte(`{"Version":2,"Socket":"/sock","Listener":`+strconv.Itoa(give(t))+`,"Told":`+strconv.Itoa(end)+"}\n"))
		s, err := inherit()
		if err != nil {
			t.Fatal(err)
		}
		s.listener.Close()
		if s.told != told {
			t.Errorf("told %v, and it says %v", told, s.told)
		}
	}
}
