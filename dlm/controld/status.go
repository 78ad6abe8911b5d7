package controld

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld/internal/wire"
)

// Status is the cluster as this host's dlm_controld sees it (dlm_tool status -v).
type Status struct {
	NodeID      int    // this node
	Quorate     bool   // as corosync says
	Members     int    // how many nodes run dlm_controld now
	DaemonRing  uint64 // the membership the daemons' group has agreed on (cpg) ...
	ClusterRing uint64 // ... and corosync's; they differ for a moment while the membership changes
	FencePID    int    // the fence agent that runs on this host; 0 if none does
	// FencingUnknown: just started, and not yet told by the others what is being fenced; lockspaces wait for that.
	FencingUnknown bool
	// MergeWait: nodes that had been separated have met again, all with lockspaces ("stateful merge"). Where the daemon does
	// not sort that out by ending some of them it waits, for ever, until enough of them are rebooted. Since dlm 4.1.
	MergeWait bool
	Monotime  int64 // CLOCK_MONOTONIC of this host when it answered, in seconds

	Nodes   []DaemonNode // every node seen since this daemon was started, by number
	Startup []DaemonNode // nodes of corosync's configuration never seen, that must be fenced first (enable_startup_fencing)
}

// DaemonNode is a node as a member of the group of daemons. Times are zero if it never happened.
type DaemonNode struct {
	NodeID       int
	Member       bool
	LeftReason   string    // "join", "leave", "nodedown", "nodeup", "procdown", "startup" or "unknown"; of its last failure
	NeedFencing  bool      // it was lost while in a lockspace, and no fence agent has said yet that it does no more harm
	DelayFencing bool      // fencing waits for quorum, or for post_join_delay
	FencePID     int       // the fence agent running against it on this host
	FenceActor   int       // the node that fences it, or was the last to try; 0 if none
	Failed       time.Time // by this host's clock, in whole seconds
	Fenced       time.Time
}

// Lost reports whether the node has left the cluster other than in good order. The daemon notes that only where fencing
// is enabled; without it LeftReason is always "unknown".
func (n DaemonNode) Lost() bool {
	return !n.Member && (n.NeedFencing || n.LeftReason == "nodedown" || n.LeftReason == "procdown")
}

// Status asks for the state of the cluster. It is safe in a program that may be killed; see the package comment.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask(ctx, c, "status", "", request(wire.CmdDumpStatus, "", 0, 0), false, readStatus)
}

// readStatus reads states until the end of the connection, which is how the answer ends.
func readStatus(r io.Reader) (Status, error) {
	var st Status
	var buf [maxText]byte
	seen := false
	for n := 0; ; n++ {
		if n == maxStates {
			return st, malformed("more than %d states", maxStates)
		}
		if _, err := io.ReadFull(r, buf[:wire.StateSize]); err == io.EOF && seen {
			sortNodes(st.Nodes)
			sortNodes(st.Startup)
			return st, nil
		} else if err != nil {
			return st, err // also an end before the daemon's own state
		}
		s, err := wire.Decode[wire.DlmcState](buf[:wire.StateSize])
		if err != nil {
			return st, malformed("%v", err)
		}
		if s.StrLen > maxText || s.BinLen > maxText {
			return st, malformed("a state with %d and %d bytes", s.StrLen, s.BinLen)
		}
		if _, err := io.ReadFull(r, buf[:s.StrLen]); err != nil {
			return st, unexpected(err)
		}
		values := parseValues(text(buf[:s.StrLen]))
		if _, err := io.ReadFull(r, buf[:s.BinLen]); err != nil {
			return st, unexpected(err)
		}
		switch s.Type {
		case wire.StateDaemon:
			seen = true
			st.fill(int(s.Nodeid), values)
		case wire.StateDaemonNode:
			st.Nodes = append(st.Nodes, daemonNode(int(s.Nodeid), values))
		case wire.StateStartupNode:
			st.Startup = append(st.Startup, daemonNode(int(s.Nodeid), values))
		} // a later version may know more
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func sortNodes(nodes []DaemonNode) {
	slices.SortFunc(nodes, func(a, b DaemonNode) int { return a.NodeID - b.NodeID })
}

func (st *Status) fill(id int, v values) {
	st.NodeID = id
	st.Quorate = v.is("quorate")
	st.Members = v.int("member_count")
	st.DaemonRing = v.uint("daemon_ringid")
	st.ClusterRing = v.uint("cluster_ringid")
	st.FencePID = v.int("fence_pid")
	st.FencingUnknown = v.is("fence_in_progress_unknown")
	st.MergeWait = v.is("stateful_merge_wait")
	st.Monotime = int64(v.uint("monotime"))
}

func daemonNode(id int, v values) DaemonNode {
	n := DaemonNode{
		NodeID: id, Member: v.is("member"), LeftReason: v["left_reason"],
		NeedFencing: v.is("need_fencing"), DelayFencing: v.is("delay_fencing"),
		FencePID: v.int("fence_pid"), FenceActor: max(v.int("fence_actor_last"), 0),
		Failed: v.time("fail_walltime"), Fenced: v.time("fence_walltime"),
	}
	return n
}

// values is the text of a state: "key=value " again and again. What is missing or no number is 0.
type values map[string]string

func parseValues(s string) values {
	v := values{}
	for f := range strings.FieldsSeq(s) {
		if key, value, ok := strings.Cut(f, "="); ok {
			v[key] = value
		}
	}
	return v
}

func (v values) is(key string) bool { return v.int(key) != 0 }

func (v values) int(key string) int {
	n, _ := strconv.ParseInt(v[key], 10, 32)
	return int(n)
}

func (v values) uint(key string) uint64 {
	n, _ := strconv.ParseUint(v[key], 10, 64)
	return n
}

func (v values) time(key string) time.Time { return seconds(v.uint(key)) }

func seconds(n uint64) time.Time {
	if n == 0 || n > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(n), 0)
}

// Config is how dlm_controld was configured: by dlm.conf, its command line, or later.
type Config struct {
	EnableFencing         bool // without it a lost node's locks are granted elsewhere though it may still live
	EnableQuorumFencing   bool // fence only with quorum
	EnableQuorumLockspace bool // lockspaces run only with quorum
	EnableStartupFencing  bool
	PostJoinDelay         time.Duration     // how long fencing waits after a node has joined; whole seconds
	All                   map[string]string // every option by its name in dlm.conf(5)
}

// Config asks for the configuration. It is safe in a program that may be killed; see the package comment.
func (c *Client) Config(ctx context.Context) (Config, error) {
	return ask(ctx, c, "config", "", request(wire.CmdDumpConfig, "", 0, 0), false, readConfig)
}

func readConfig(r io.Reader) (Config, error) {
	_, body, err := readAnswer(r, wire.CmdDumpConfig, maxConfig)
	if err != nil {
		return Config{}, err
	}
	all := values{}
	for line := range strings.Lines(text(body)) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if !ok {
			continue
		}
		for _, origin := range []string{" (set_config)", " (cli option)", " (dlm.conf)"} {
			value = strings.TrimSuffix(value, origin)
		}
		all[key] = value
	}
	return Config{
		EnableFencing: all.is("enable_fencing"), EnableQuorumFencing: all.is("enable_quorum_fencing"),
		EnableQuorumLockspace: all.is("enable_quorum_lockspace"), EnableStartupFencing: all.is("enable_startup_fencing"),
		PostJoinDelay: time.Duration(all.int("post_join_delay")) * time.Second, All: all,
	}, nil
}

// readAnswer reads a header and what it announces, at most limit bytes.
func readAnswer(r io.Reader, command uint32, limit int) (wire.DlmcHeader, []byte, error) {
	var buf [wire.HeaderSize]byte
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return wire.DlmcHeader{}, nil, err
	}
	h, err := decodeHeader(buf[:], command)
	if err != nil {
		return h, nil, err
	}
	n := int64(h.Len) - wire.HeaderSize
	if n > int64(limit) {
		return h, nil, malformed("an answer of %d bytes", h.Len)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return h, nil, unexpected(err)
	}
	return h, body, nil
}
