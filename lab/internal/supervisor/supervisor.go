// Package supervisor is the one process that owns a lab.
//
// It is process 1 of a PID namespace of its own, with a network and a mount namespace of its own. All
// that a lab consists of (kernels, bridges, working files) lives in these three, so the end of this
// one process, however it comes, is the end of all of it: the kernel kills every process of the PID
// namespace, and the other two go with the last of them. The supervisor ends when it is told to, on
// SIGTERM, and when the other end of its control pipe is closed, which the kernel does when the test that
// started it dies. What survives is the directory with the logs.
package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Names in a lab's run directory.
const (
	ConfigFile = "lab.json"
	SocketFile = "socket"
	LockFile   = "lock"
	workDir    = "work" // mount point of the tmpfs with all working files
)

// ControlFD is the file descriptor of the control pipe, if the supervisor has one.
const ControlFD = 3

// Run is the supervisor's life. runDir holds its configuration; it is removed at the end. control
// says whether ControlFD is the read end of a pipe whose end of file means "stop".
func Run(runDir string, control bool) error {
	s := &supervisor{runDir: runDir, work: filepath.Join(runDir, workDir), log: log.New(os.Stderr, "", log.LstdFlags|log.Lmicroseconds)}
	ctx, stop := context.WithCancelCause(context.Background())
	s.stop = stop
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	go func() { stop(fmt.Errorf("signal: %v", <-signals)) }()
	if control {
		go func() {
			_, err := io.Copy(io.Discard, os.NewFile(ControlFD, "control"))
			stop(fmt.Errorf("whoever started the lab is gone (%v)", err))
		}()
	}
	err := s.run(ctx)
	if err != nil {
		s.log.Print(err)
	}
	return errors.Join(err, s.end())
}

type supervisor struct {
	runDir, work string
	log          *log.Logger
	stop         context.CancelCauseFunc
	cfg          wire.LabConfig
	nodes        []*node
	logs         *logs
}

func (s *supervisor) run(ctx context.Context) error {
	b, err := os.ReadFile(filepath.Join(s.runDir, ConfigFile))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &s.cfg); err != nil {
		return fmt.Errorf("%s: %w", ConfigFile, err)
	}
	if err := s.mountWork(); err != nil {
		return err
	}
	if err := setupNetwork(s.cfg.Nodes); err != nil {
		return err
	}
	for _, nc := range s.cfg.Nodes {
		n, err := s.newNode(nc)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
	}
	s.logs = newLogs(s.work, s.cfg.LogDir, len(s.nodes))

	fence, err := net.Listen("tcp", wire.SupervisorAddr+":"+strconv.Itoa(wire.FencePort))
	if err != nil {
		return err
	}
	api, err := net.Listen("unix", filepath.Join(s.runDir, SocketFile))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, srv := range []struct {
		l net.Listener
		h http.Handler
	}{{fence, s.fenceHandler()}, {api, s.handler()}} {
		hs := &http.Server{Handler: srv.h, ReadHeaderTimeout: time.Minute, ErrorLog: s.log}
		wg.Go(func() {
			if err := hs.Serve(srv.l); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		})
		// Close, not Shutdown: a request that waits for a node must not keep the lab alive.
		context.AfterFunc(ctx, func() { hs.Close() })
	}
	wg.Go(func() { s.logs.follow(ctx) })
	s.log.Printf("lab %s: ready for %d nodes", s.cfg.Name, len(s.nodes))
	<-ctx.Done()
	s.log.Printf("lab %s ends: %v", s.cfg.Name, context.Cause(ctx))
	return nil
}

// mountWork cuts this mount namespace off from the host's and gives it a tmpfs for everything that
// must vanish with it.
func (s *supervisor) mountWork() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// A fresh /proc shows this PID namespace; the old one would show the host's numbers.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.MkdirAll(s.work, 0o755); err != nil {
		return err
	}
	// Nodes' memory is in files here, and is mapped executable. size=0: the nodes' own limits count.
	if err := unix.Mount("tmpfs", s.work, "tmpfs", unix.MS_NODEV, "mode=755,size=0"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for _, d := range []string{"bin", "memory", "shared"} {
		if err := os.Mkdir(filepath.Join(s.work, d), 0o755); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	binaries := map[string]string{"lab": self}
	for name, path := range s.cfg.Binaries {
		binaries[name] = path
	}
	for name, path := range binaries {
		if err := copyFile(filepath.Join(s.work, "bin", name), path); err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
	}
	if s.cfg.DeviceMB > 0 {
		f, err := os.Create(s.device())
		if err != nil {
			return err
		}
		return errors.Join(f.Truncate(int64(s.cfg.DeviceMB)<<20), f.Close())
	}
	return nil
}

func (s *supervisor) device() string { return filepath.Join(s.work, "device") }

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// end stops what runs and removes what the lab left on the host, except the logs. Everything in the
// namespaces would end with this process anyway; it is done here so that it is over when the supervisor is.
func (s *supervisor) end() error {
	var wg sync.WaitGroup
	for _, n := range s.nodes {
		wg.Go(n.powerCut)
	}
	wg.Wait()
	if s.logs != nil {
		s.logs.sync()
	}
	// EINVAL: it was never mounted.
	if err := unix.Unmount(s.work, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return os.RemoveAll(s.runDir)
}
