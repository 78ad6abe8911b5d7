package doctor

import "time"

// Daemon is what a running vmlockd says of itself.
type Daemon struct {
	Version string
	PID     int
	Backend string
	Socket  string // where libvirt connects to

	Draining *Draining

	// The next are of a cluster, and zero in local mode.
	NodeID    uint32
	Lockspace string // "running", "stopped", "joining" or "dead"
	WaitsFor  string // what it waits for, unless it is running
	Lost      string // why this host has lost the cluster, as the guard says; "" if it has not
	Guarded   bool   // something keeps a host that is cut off from writing
	Peers     []Peer // the other hosts that run vmlockd

	Holders  []Holder
	Warnings []DaemonWarning
}

// Draining says since when a host grants nothing new, and who wanted it.
type Draining struct {
	Since      time.Time
	By, Reason string
}

// Peer is another host that runs vmlockd.
type Peer struct {
	NodeID  uint32
	Name    string
	Version string // "" if it is not known
	Silent  bool   // it is there and does not answer
}

// Holder is an owner of a lock.
type Holder struct {
	Here      bool   // on this host
	Node      string // the host's name
	VM        string
	PID       int
	Shared    bool
	Lockspace string
	Resource  string
}

// DaemonWarning is a warning in the daemon's status, with its code.
type DaemonWarning struct{ Code, Message string }

// The states of a lockspace that mean something here.
const (
	lockspaceRunning = "running"
	lockspaceDead    = "dead"
)

// Codes of warnings (internal/control) that a check of its own covers. A
// configuration that differs from a peer's is told by its warning only.
// The same goes for hosts without a daemon.
const (
	warnConfigurations = "configurations"
	warnRules          = "identity_rules"
	warnNoDaemon       = "no_daemon"
)

var covered = []string{
	"unprotected", "no_quorum", "lockspace", "reboot", "no_answer", "draining", "versions", "silent", warnConfigurations, warnRules, warnNoDaemon,
}
