package dlm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// NodeKernel is what a Kernel may be besides. Host and the simulation in package dlmtest are.
type NodeKernel interface {
	Kernel
	// NodeID is the number that this node has in the cluster.
	NodeID() (uint32, error)
}

// ErrNoNodeID: the kernel has not been told which node of the cluster this one is.
var ErrNoNodeID = errors.New("the kernel does not know this node's number; is dlm_controld running?")

// NodeID is the number of the node that k is the kernel of, as dlm_controld has told it: corosync's nodeid, never 0.
// The error is ErrNoNodeID if it has not, or if k is no NodeKernel.
func NodeID(k Kernel) (uint32, error) {
	nk, ok := k.(NodeKernel)
	if !ok {
		return 0, ErrNoNodeID
	}
	id, err := nk.NodeID()
	if err == nil && id == 0 {
		err = ErrNoNodeID
	}
	return id, err
}

// NodeID looks for the one node of /sys/kernel/config/dlm/cluster/comms that is local (fs/dlm/config.c).
func (h host) NodeID() (uint32, error) {
	comms := filepath.Join(h.sys, "kernel/config/dlm/cluster/comms")
	nodes, err := os.ReadDir(comms)
	if err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrNoNodeID, err)
	}
	for _, n := range nodes {
		local, err := os.ReadFile(filepath.Join(comms, n.Name(), "local"))
		if err != nil || strings.TrimSpace(string(local)) != "1" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(comms, n.Name(), "nodeid"))
		if err != nil {
			return 0, fmt.Errorf("%w (%w)", ErrNoNodeID, err)
		}
		id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%w: %s says %q", ErrNoNodeID, filepath.Join(comms, n.Name(), "nodeid"), text)
		}
		return uint32(id), nil
	}
	return 0, ErrNoNodeID
}
