package supervisor

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Bridges of the two networks.
const (
	clusterBridge = "cluster"
	commandBridge = "command"
)

func clusterTap(id int) string { return fmt.Sprintf("cluster%d", id) }
func commandTap(id int) string { return fmt.Sprintf("command%d", id) }

// setupNetwork makes the bridges and one tap device per node and network, in this process's own
// network namespace.
func setupNetwork(nodes []wire.NodeConfig) error {
	var b strings.Builder
	b.WriteString("link set lo up\n")
	for _, br := range []string{clusterBridge, commandBridge} {
		// No multicast snooping: without a querier a bridge may drop what corosync sends.
		fmt.Fprintf(&b, "link add %s type bridge mcast_snooping 0\nlink set %s up\n", br, br)
	}
	fmt.Fprintf(&b, "address add %s/24 dev %s\n", wire.SupervisorAddr, commandBridge)
	for _, n := range nodes {
		for tap, br := range map[string]string{clusterTap(n.ID): clusterBridge, commandTap(n.ID): commandBridge} {
			fmt.Fprintf(&b, "tuntap add %s mode tap\nlink set %s master %s up\n", tap, tap, br)
		}
	}
	return ip(b.String())
}

// setCut takes the node's tap out of the cluster bridge or puts it back. Setting the link down instead
// would leave User-Mode Linux's driver deaf after the link is up again.
func setCut(id int, cut bool) error {
	if cut {
		return ip("link set " + clusterTap(id) + " nomaster\n")
	}
	return ip("link set " + clusterTap(id) + " master " + clusterBridge + "\n")
}

// ip runs commands of ip(8), one per line.
func ip(batch string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
