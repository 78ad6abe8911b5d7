package daemon

import (
	"context"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/guard"
)

// twoHalves reports whether quorum.expected_votes is set by hand to so few that two parts of the cluster can have quorum at
// once: it overrides what corosync finds in the list of nodes (votequorum(5)).
func twoHalves(quorum, nodes map[string]corosync.Value) bool {
	expected, ok := quorum["quorum.expected_votes"].Uint()
	if !ok || expected == 0 {
		return false
	}
	var all uint64
	for key := range nodes {
		if prefix, ok := strings.CutSuffix(key, ".nodeid"); ok {
			if votes, ok := nodes[prefix+".quorum_votes"].Uint(); ok {
				all += votes
			} else {
				all++
			}
		}
	}
	if quorum["quorum.device.model"].String() != "" {
		if votes, ok := quorum["quorum.device.votes"].Uint(); ok {
			all, expected = all+votes, expected+votes
		}
	}
	return 2*(expected/2+1) <= all
}

// defaultDeviceTimeout is that of quorum.device.timeout (corosync-qdevice(8)).
const defaultDeviceTimeout = 10 * time.Second

// deviceOverlap is for how long a part of the cluster may count the vote of the quorum device after corosync-qnetd has given it to
// another one. Who can be told loses it first (qnetd-algo-ffsplit.c). Who cannot finds that out by itself: corosync-qdevice when an echo
// of qnetd is missing, which it asks for every 0.8 of the timeout and at least every second, so within twice that; corosync, when
// corosync-qdevice is gone, after the timeout (votequorum.c, qdevice_timer_fn).
func deviceOverlap(timeout time.Duration) time.Duration {
	return max(timeout, 2*max(timeout*8/10, time.Second))
}

// decides reports whether the device of this configuration leaves at most one part of the cluster with quorum, but for a time that is
// bounded. The algorithm lms does not: with wait_for_all a part that does not reach qnetd goes on with the vote
// that it had (qdevice-net-algo-lms.c), and one that is told nothing new keeps it while a larger one gets it (qnetd-algo-lms.c). With
// master_wins the votes do not count at all.
func decides(quorum, runtime map[string]corosync.Value) bool {
	algorithm := quorum["quorum.device.net.algorithm"].String()
	wins, _ := runtime["runtime.votequorum.qdevice_master_wins"].Uint()
	return quorum["quorum.device.model"].String() == "net" && (algorithm == "" || algorithm == "ffsplit") && wins == 0
}

// totem asks corosync for what the guard has to know.
func totem(cmap *corosync.Cmap) func(context.Context) (guard.Totem, error) {
	return func(ctx context.Context) (t guard.Totem, err error) {
		for key, to := range map[string]*time.Duration{"runtime.config.totem.token": &t.Token, "runtime.config.totem.consensus": &t.Consensus} {
			ms, err := cmap.Uint32(ctx, key)
			if err != nil {
				return t, err
			}
			*to = time.Duration(ms) * time.Millisecond
		}
		nodes, err := cmap.Nodes(ctx)
		if err != nil {
			return t, err
		}
		for _, n := range nodes {
			t.Nodes = append(t.Nodes, n.ID)
		}
		quorum, err := cmap.List(ctx, "quorum.")
		if err != nil {
			return t, err
		}
		runtime, err := cmap.List(ctx, "runtime.votequorum.")
		if err != nil {
			return t, err
		}
		// With a device corosync does not start with it. Where both are there after a reload it may leave the device
		// out of account instead (votequorum.c, votequorum_readconfig).
		two, _ := quorum["quorum.two_node"].Uint()
		// With this one what is left has quorum, however few that are.
		last, _ := quorum["quorum.last_man_standing"].Uint()
		// With this one those who remain when others have left in order, who may be back in another part.
		down, _ := quorum["quorum.allow_downscale"].Uint()
		device := quorum["quorum.device.model"].String() != ""
		votes, err := cmap.List(ctx, "nodelist.node.")
		if err != nil {
			return t, err
		}
		t.Majority = quorum["quorum.provider"].String() == "corosync_votequorum" && last == 0 && down == 0 && two == 0 && (!device || decides(quorum, runtime)) && !twoHalves(quorum, votes)
		// A device gives its vote to whom it likes, and to another part later.
		t.Static = t.Majority && !device
		if t.Majority && device {
			timeout := defaultDeviceTimeout
			if ms, ok := quorum["quorum.device.timeout"].Uint(); ok {
				timeout = time.Duration(ms) * time.Millisecond
			}
			t.Device = deviceOverlap(timeout)
		}
		return t, nil
	}
}
