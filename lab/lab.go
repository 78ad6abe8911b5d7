package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// RunDir holds one directory per lab of this machine, by name, with the supervisor's socket. A lab
// removes its own when it ends; what a killed supervisor left is removed by the next Start.
const RunDir = "/run/vmlockd-lab"

// closeTimeout bounds the end of a lab, which is the end of a few processes.
const closeTimeout = 30 * time.Second

// Errors that methods of Lab, Node and Process return, to be found with errors.Is.
var (
	// ErrNodeOff: the node has no power, or lost it while the request was under way.
	ErrNodeOff = errors.New("the node has no power")
	// ErrNotFound: there is no such lab, node, process or file.
	ErrNotFound = errors.New("not found")
	// ErrState: the lab, node or process is not in a state in which this makes sense, such as booting a running node.
	ErrState = errors.New("wrong state")
	// ErrNotRunnable: the command could not be started; there is no exit status.
	ErrNotRunnable = errors.New("cannot be run")
)

// Lab is a running lab.
type Lab struct {
	name    string
	logDir  string
	ownLogs bool // Close removes logDir
	nodes   []*Node
	members int // of the cluster: all but a witness
	client  *http.Client

	pid     int           // of the supervisor; 0 if it was never started
	ended   chan struct{} // closed when the supervisor, our child, is gone; nil for an attached lab
	control *os.File      // the write end of the supervisor's control pipe; nil if it has none

	closeOnce sync.Once
	closeErr  error
}

// made counts the labs of this process that had no name.
var made atomic.Int64

// Start starts a lab and returns when all its nodes run commands and, unless cfg.NoWait or cfg.NoCluster, all are in
// one quorate cluster with dlm_controld ready. On an error nothing is left running, and the error carries the ends of
// the logs. The context bounds the start only. The caller must Close the lab.
func Start(ctx context.Context, cfg Config) (*Lab, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = fmt.Sprintf("t%d-%d", os.Getpid(), made.Add(1))
	}
	l := &Lab{name: cfg.Name}
	if cfg.LogDir == "" {
		if cfg.LogDir, err = os.MkdirTemp("", "vmlockd-lab-"); err != nil {
			return nil, err
		}
		l.ownLogs = true
	}
	l.logDir = cfg.LogDir
	if err := l.launch(ctx, cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.up(ctx, cfg); err != nil {
		err = fmt.Errorf("%w\n%s", err, l.summary())
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// up boots all nodes at once and waits for the cluster.
func (l *Lab) up(ctx context.Context, cfg Config) error {
	if err := l.each(func(n *Node) error { return n.Boot(ctx) }); err != nil {
		return err
	}
	if cfg.NoWait || cfg.NoCluster {
		return nil
	}
	return l.WaitQuorate(ctx)
}

// each calls f for all nodes at once and returns all errors.
func (l *Lab) each(f func(*Node) error) error {
	errs := make([]error, len(l.nodes))
	var wg sync.WaitGroup
	for i, n := range l.nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.name }

// LogDir is the directory on this machine with the logs: supervisor.log, and per node nodeN/console.log and
// one per service. They follow what happens in the nodes by a fraction of a second; Dump is up to date.
func (l *Lab) LogDir() string { return l.logDir }

// Nodes are all nodes but the witness, by number.
func (l *Lab) Nodes() []*Node { return l.nodes[:l.members] }

// Witness is the node that Config.Witness adds. It panics if there is none.
func (l *Lab) Witness() *Node { return l.Node(l.members + 1) }

// Node is the node with this number, which starts at 1; a witness has the last one. It panics if there is none: that is a mistake in the test.
func (l *Lab) Node(id int) *Node {
	if id < 1 || id > len(l.nodes) {
		panic(fmt.Sprintf("lab: no node %d; the lab has %d", id, len(l.nodes)))
	}
	return l.nodes[id-1]
}

// Status says how all nodes are.
func (l *Lab) Status(ctx context.Context) ([]NodeStatus, error) {
	var st wire.LabStatus
	err := l.call(ctx, http.MethodGet, "/status", nil, &st)
	return st.Nodes, err
}

// Shared is the path on this machine of the directory that is SharedDir in the nodes. It works for root
// only, and only as long as the lab runs.
func (l *Lab) Shared() string { return l.hostPath("shared") }

// hostPath looks into the supervisor's mount namespace, through /proc.
func (l *Lab) hostPath(elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(l.pid), "root", RunDir, l.name, "work"}, elem...)...)
}

// Install puts a program into the nodes, found there in PATH by the given name, or replaces it. A running
// program goes on with what it was started from.
func (l *Lab) Install(name, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// A new file under the old name: the old one may be in use.
	to := l.hostPath("bin", filepath.Base(name))
	if err := os.WriteFile(to+".new", b, 0o755); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// Close ends the lab: all nodes lose their power, and everything but the logs is removed. It returns when that
// is done. Later calls return the same.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.end() })
	return l.closeErr
}

func (l *Lab) end() error {
	var err error
	if l.pid != 0 {
		err = l.endSupervisor()
	}
	if l.ownLogs {
		err = errors.Join(err, os.RemoveAll(l.logDir))
	}
	return err
}

func (l *Lab) endSupervisor() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	// Before the request: while the supervisor answers, its pid is its own.
	fd, pidErr := unix.PidfdOpen(l.pid, 0)
	if pidErr == nil {
		defer unix.Close(fd)
	}
	err := l.call(ctx, http.MethodPost, "/end", nil, nil)
	if l.control != nil {
		l.control.Close()
	}
	if l.ended == nil {
		if pidErr != nil {
			return pidErr
		}
		// It may end before it has answered; its end is what counts.
		if waitErr := waitPidfd(fd, closeTimeout); waitErr != nil {
			return errors.Join(err, waitErr)
		}
		return nil
	}
	// Our child: its end counts, whether it has answered or not.
	select {
	case <-l.ended:
		return nil
	case <-ctx.Done():
		err := unix.Kill(l.pid, unix.SIGKILL)
		<-l.ended
		return errors.Join(fmt.Errorf("the supervisor did not end within %v and was killed", closeTimeout), err)
	}
}

// waitPidfd waits for the end of a process that is not our child.
func waitPidfd(fd int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("the supervisor did not end within %v", timeout)
		default:
			return nil
		}
	}
}
