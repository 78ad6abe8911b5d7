// Package wire holds what the three programs of the lab say to each other: the client library
// (package lab), the supervisor that owns the nodes, and the agent inside each node. All of it is
// JSON over HTTP; client and supervisor talk on a unix socket, supervisor and agent over TCP on
// the command network.
package wire

import (
	"fmt"
	"path/filepath"
	"time"
)

// Paths inside a node. They are the same in every node.
const (
	// SharedDir is one directory of the host, visible in all nodes and kept for the lab's life.
	SharedDir = "/srv/shared"
	// PrivateDir belongs to one node and survives its power cut, as a local disk would.
	PrivateDir = "/srv/private"
	// LogDir takes the logs of the node's services; the supervisor copies them to the host.
	LogDir = "/var/log/lab"
	// BinDir holds the programs that the lab brings along (vmlockd, the lab's own helpers). It is first in PATH.
	BinDir = "/usr/local/lib/vmlockd-lab"
	// Device is the block device that all nodes share, when the lab has one.
	Device = "/dev/ubda"
)

// Ports on the command network.
const (
	AgentPort = 7070 // in each node
	FencePort = 7071 // at the supervisor: a node asks here for the power cut of another one
)

// MaxNodes bounds a lab: the nodes share one machine.
const MaxNodes = 5

// The two networks use addresses that RFC 5737 reserves for documentation, so that they can never be
// mistaken for a real network. The host part is the node's number.

// ClusterAddr is the address of node id for corosync, DLM and libvirt; a cut takes it away.
func ClusterAddr(id int) string { return fmt.Sprintf("192.0.2.%d", id) }

// CommandAddr is the address of node id for the lab's own commands; a cut leaves it alone.
func CommandAddr(id int) string { return fmt.Sprintf("198.51.100.%d", id) }

// SupervisorAddr is the supervisor's address on the command network.
const SupervisorAddr = "198.51.100.254"

// LabConfig is what the supervisor is started with: everything is resolved, nothing is defaulted.
type LabConfig struct {
	Name     string            `json:"name"`
	LogDir   string            `json:"log_dir"`
	MemoryMB int               `json:"memory_mb"`
	DeviceMB int               `json:"device_mb"` // 0: no shared block device
	Binaries map[string]string `json:"binaries"`  // name in the node: path on the host
	Nodes    []NodeConfig      `json:"nodes"`
}

// NodeConfig is what one node's first process works through.
type NodeConfig struct {
	ID         int               `json:"id"`
	Hostname   string            `json:"hostname"`
	Interfaces []Interface       `json:"interfaces"`
	Mounts     []Mount           `json:"mounts"`
	Modules    []string          `json:"modules"`
	Files      []File            `json:"files"`
	Links      map[string]string `json:"links"` // path of the link: its target
	Services   []Service         `json:"services"`
	Env        []string          `json:"env"`
	Systemd    bool              `json:"systemd,omitempty"` // systemd is process 1, once the agent runs
}

// Interface is a network interface and its address with prefix length.
type Interface struct {
	Name string `json:"name"`
	CIDR string `json:"cidr"`
}

// Mount puts a file system at Path: a directory of the host if Host is set, else an empty tmpfs.
type Mount struct {
	Path string `json:"path"`
	Host string `json:"host,omitempty"`
	// Sync makes every write reach the host at once. Without it hostfs keeps dirty pages in the node
	// for up to half a minute, and a power cut loses them, as it would on a real disk.
	Sync bool `json:"sync,omitempty"`
}

// File is written into the node before any service starts.
type File struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"`
	Data []byte `json:"data"`
}

// Service is a long-running program in a node.
type Service struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// After lists unix sockets that must be listening first: a path, or @name for the abstract kind.
	After []string `json:"after,omitempty"`
	// RetryOn, if it is not empty, has the service started again, some times, when it ends with a failure and this is in
	// what it wrote last.
	RetryOn string `json:"retry_on,omitempty"`
	// Manual services are known to the agent but not started at boot.
	Manual bool `json:"manual,omitempty"`
}

// LogName is the name of the service's log file.
func (s Service) LogName() string { return filepath.Base(s.Name) + ".log" }

// ExecRequest asks an agent to run a program to its end.
type ExecRequest struct {
	Args      []string `json:"args"`
	Env       []string `json:"env,omitempty"` // added to the node's own
	Dir       string   `json:"dir,omitempty"`
	Stdin     []byte   `json:"stdin,omitempty"`
	MaxOutput int      `json:"max_output"` // bytes kept of stdout and of stderr each
}

// ExecResult is how the program ended.
type ExecResult struct {
	Stdout    []byte        `json:"stdout"`
	Stderr    []byte        `json:"stderr"`
	Status    int           `json:"status"` // exit status, or 128 plus the signal that ended it
	Truncated bool          `json:"truncated,omitempty"`
	Took      time.Duration `json:"took"`
}

// ProcessStatus describes a service or background process.
type ProcessStatus struct {
	Name    string `json:"name"`
	State   string `json:"state"` // one of the Process constants
	PID     int    `json:"pid,omitempty"`
	Status  int    `json:"status"`            // meaningful when exited; as in ExecResult
	Problem string `json:"problem,omitempty"` // why it could not be started
	Starts  int    `json:"starts"`
}

// States of a process.
const (
	ProcessWaiting = "waiting" // for what it is to be started after
	ProcessRunning = "running"
	ProcessExited  = "exited"
	ProcessFailed  = "failed" // never ran
	ProcessManual  = "not started"
)

// SignalRequest asks for a signal to a process, or to its whole process group.
type SignalRequest struct {
	Signal int  `json:"signal"`
	Group  bool `json:"group"`
}

// States of a node.
const (
	NodeOff     = "off"
	NodeBooting = "booting"
	NodeRunning = "running"
	NodeFrozen  = "frozen"
)

// NodeStatus describes a node from outside.
type NodeStatus struct {
	ID    int    `json:"id"`
	State string `json:"state"`
	Cut   bool   `json:"cut"` // out of the cluster network
	Boots int    `json:"boots"`
	PID   int    `json:"pid,omitempty"` // of User-Mode Linux, in the supervisor's PID namespace
	Addr  string `json:"addr"`
}

// LabStatus describes the lab.
type LabStatus struct {
	Name   string       `json:"name"`
	PID    int          `json:"pid"` // of the supervisor, as seen by who started it
	LogDir string       `json:"log_dir"`
	Nodes  []NodeStatus `json:"nodes"`
}

// Error is the body of every reply that is not a success.
type Error struct {
	Message string `json:"error"`
	Code    string `json:"code,omitempty"`
}

// Codes of errors that a client tells apart.
const (
	CodeNodeOff     = "node_off"     // the node has no power, or lost it during the request
	CodeNotFound    = "not_found"    // no such node, process or file
	CodeState       = "wrong_state"  // the node or process is not in a state for this
	CodeNotRunnable = "not_runnable" // the program could not be started
)
