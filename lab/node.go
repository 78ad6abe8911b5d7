package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Node is one machine of the lab.
type Node struct {
	lab *Lab
	id  int
}

// ID is the node's number, which is also its corosync and DLM node id. It starts at 1.
func (n *Node) ID() int { return n.id }

// Name is the node's host name.
func (n *Node) Name() string { return nodeName(n.id) }

// Addr is the node's address on the cluster network.
func (n *Node) Addr() string { return wire.ClusterAddr(n.id) }

// NodeStatus says how a node is.
type NodeStatus = wire.NodeStatus

// States of a node.
const (
	NodeOff     = wire.NodeOff
	NodeBooting = wire.NodeBooting
	NodeRunning = wire.NodeRunning
	NodeFrozen  = wire.NodeFrozen
)

// Status says how the node is, as seen from outside.
func (n *Node) Status(ctx context.Context) (NodeStatus, error) {
	var st wire.LabStatus
	if err := n.lab.call(ctx, http.MethodGet, "/status", nil, &st); err != nil {
		return NodeStatus{}, err
	}
	return st.Nodes[n.id-1], nil
}

func (n *Node) do(ctx context.Context, what string) error {
	return n.lab.call(ctx, http.MethodPost, fmt.Sprintf("/nodes/%d/%s", n.id, what), nil, nil)
}

// Cut takes the node out of the cluster network, as if its cable were pulled. Commands still work, and
// the shared directory and device stay, as they do when storage has a network of its own.
func (n *Node) Cut(ctx context.Context) error { return n.do(ctx, "cut") }

// Heal puts the node back into the cluster network. A node that the others have lost in the meantime and that has used a lockspace since
// its boot does not go back to work by that: the others' dlm_controld make its corosync and dlm_controld end, and it needs PowerCut and Boot.
func (n *Node) Heal(ctx context.Context) error { return n.do(ctx, "heal") }

// Freeze stops the node between two instructions, as a hypervisor that pauses it would. Nothing in
// it runs, commands wait.
func (n *Node) Freeze(ctx context.Context) error { return n.do(ctx, "freeze") }

// Thaw lets a frozen node go on. Its clocks jump.
func (n *Node) Thaw(ctx context.Context) error { return n.do(ctx, "thaw") }

// PowerCut ends the node at once. What it has not synced is lost; what is in PrivateDir, SharedDir and
// /var/lib/vmlockd stays. It returns when no process of the node is left; on a node without power it does nothing.
func (n *Node) PowerCut(ctx context.Context) error { return n.do(ctx, "power-cut") }

// Boot switches the power on and returns when the node runs commands; its services are being started then. A
// node that was cut off stays cut off. ErrState if it has power already.
//
// Where the others have not noticed yet that it was off (WaitRing on them), it is in their ring again with
// a lockspace that they still have and it has not: their dlm_controld makes its corosync end.
func (n *Node) Boot(ctx context.Context) error { return n.do(ctx, "boot") }

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	// Status is the exit status, or 128 plus the number of the signal that ended the command.
	Status int
	// Truncated: there was more output than Cmd.MaxOutput.
	Truncated bool
	// Took is the command's run time in the node.
	Took time.Duration
}

// OK says that the status is 0.
func (r Result) OK() bool { return r.Status == 0 }

// String is for messages of tests: the status and all output.
func (r Result) String() string {
	return fmt.Sprintf("status %d after %v\nstdout: %s\nstderr: %s", r.Status, r.Took.Round(time.Millisecond), r.Stdout, r.Stderr)
}

// DefaultMaxOutput is how many bytes are kept of a command's standard output and error each.
const DefaultMaxOutput = 1 << 20

// Cmd is a command for a node.
type Cmd struct {
	Args  []string
	Env   []string // KEY=VALUE, added to the node's own
	Dir   string   // empty: /
	Stdin []byte   // nil: /dev/null
	// MaxOutput is how many bytes are kept of each output; 0 means DefaultMaxOutput. The rest is swallowed.
	MaxOutput int
}

// Exec runs a command in the node to its end. A status other than 0 is not an error. When ctx ends, the command and its
// process group are killed. Errors: ErrNotRunnable, ErrNodeOff (the command may have run), or the context's.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (Result, error) {
	return n.Run(ctx, Cmd{Args: append([]string{name}, args...)})
}

// Shell runs a shell script in the node, like Exec.
func (n *Node) Shell(ctx context.Context, script string) (Result, error) {
	return n.Exec(ctx, "sh", "-c", script)
}

// Run is Exec with all that can be said about a command.
func (n *Node) Run(ctx context.Context, c Cmd) (Result, error) {
	if c.MaxOutput == 0 {
		c.MaxOutput = DefaultMaxOutput
	}
	req := wire.ExecRequest{Args: c.Args, Env: c.Env, Dir: c.Dir, Stdin: c.Stdin, MaxOutput: c.MaxOutput}
	var res wire.ExecResult
	if err := n.agent(ctx, http.MethodPost, "/exec", req, &res); err != nil {
		return Result{}, fmt.Errorf("%s: %q: %w", n.Name(), c.Args, err)
	}
	return Result{
		Stdout: string(res.Stdout), Stderr: string(res.Stderr), Status: res.Status, Truncated: res.Truncated, Took: res.Took,
	}, nil
}

// MustSucceed runs a command and makes a status other than 0 an error that carries all output.
func (n *Node) MustSucceed(ctx context.Context, name string, args ...string) (Result, error) {
	res, err := n.Exec(ctx, name, args...)
	if err == nil && !res.OK() {
		err = fmt.Errorf("%s: %s %q: %v", n.Name(), name, args, res)
	}
	return res, err
}

func (n *Node) agentPath(path string) string { return fmt.Sprintf("/nodes/%d/agent%s", n.id, path) }

func (n *Node) agent(ctx context.Context, method, path string, in, out any) error {
	return n.lab.call(ctx, method, n.agentPath(path), in, out)
}

// ReadFile returns a file of the node. ErrNotFound if there is none.
func (n *Node) ReadFile(ctx context.Context, path string) ([]byte, error) {
	resp, err := wire.Do(ctx, n.lab.client, http.MethodGet, base+n.agentPath("/file?path="+url.QueryEscape(path)), nil)
	if err != nil {
		return nil, translate(err)
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// WriteFile replaces a file of the node in one step, with the given permissions (0o644 and the like). It
// makes the directory. Except under PrivateDir and SharedDir the file is lost with the node's power.
func (n *Node) WriteFile(ctx context.Context, path string, data []byte, mode uint32) error {
	q := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(mode), 8)}}
	resp, err := wire.Do(ctx, n.lab.client, http.MethodPut, base+n.agentPath("/file?"+q.Encode()), bytes.NewReader(data))
	if err != nil {
		return translate(err)
	}
	return resp.Body.Close()
}

// Private is the path on this machine of the node's PrivateDir, with the limits of Lab.Shared.
func (n *Node) Private() string { return n.lab.hostPath(n.Name(), "private") }

// Log returns what the log of this name holds, such as "console", "corosync" or a process's name.
func (n *Node) Log(ctx context.Context, name string) ([]byte, error) {
	return n.lab.readLog(ctx, filepath.Join(n.Name(), name+".log"))
}
