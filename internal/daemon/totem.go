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
		// With a device corosync leaves two_node out of account (votequorum(5)).
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
		t.Majority = quorum["quorum.provider"].String() == "corosync_votequorum" && last == 0 && down == 0 && (two == 0 || device) && !twoHalves(quorum, votes)
		// A device gives its vote to whom it likes, and to another part later.
		t.Static = t.Majority && !device
		return t, nil
	}
}
