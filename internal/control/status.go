package control

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// The codes of warnings.
const (
	WarnUnprotected   = "unprotected"    // no fencing, and no guard
	WarnNoQuorum      = "no_quorum"      // locks are refused
	WarnLockspace     = "lockspace"      // the lockspace does not run
	WarnReboot        = "reboot"         // and will not before a reboot
	WarnNoAnswer      = "no_answer"      // dlm_controld does not answer
	WarnDraining      = "draining"       // this host grants nothing new
	WarnVersions      = "versions"       // nodes run different versions
	WarnConfiguration = "configurations" // nodes have different configurations
	WarnGuard         = "guard"          // this host has lost the cluster, or its guard is not safe
	WarnHoldOff       = "hold_off"       // a node has vanished, and nothing new is granted
	WarnStopped       = "stopped"        // a virtual machine stays stopped, and must not go on
	WarnNotStopped    = "not_stopped"    // one goes on although this host has lost the cluster
	WarnSilent        = "silent"         // a node is there and does not answer
	WarnNoDaemon      = "no_daemon"      // a node is there and does not run vmlockd
	WarnRules         = "identity_rules" // nodes name disks by different rules
	WarnTwoWriters    = "two_writers"    // a virtual machine runs without the lock of a disk, which another has
	WarnNotYet        = "not_yet"        // locks from before a restart are not taken back yet
)

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	if _, ok := query(w, r); !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	answer(w, s.Status(ctx))
}

// Status is how this daemon is. It returns soon after ctx ends.
func (s *Server) Status(ctx context.Context) Status {
	st := Status{
		Version: s.o.Version, PID: os.Getpid(), Started: s.started.UTC(), Backend: s.o.Backend, Socket: s.o.Socket,
		Draining: s.o.Drain.Drained(), Events: s.o.Events.Counts(), Watchers: len(s.watchers), Members: []Member{}, Warnings: []Warning{},
	}
	st.Counts = counts(s.o.Locks.Holders())
	st.Counts.Waiting = len(s.o.Locks.Waiting())
	var peers []PeerMember
	var names map[uint32]string
	if s.o.Peers != nil {
		peers, names = s.o.Peers.Members(), s.o.Peers.Names()
	}
	var nodeID uint32
	if s.o.Cluster != nil {
		c := s.o.Cluster.Cluster(ctx)
		st.Cluster = &c
		if c.NodeID != 0 {
			s.nodeID.Store(c.NodeID)
		}
		nodeID = s.nodeID.Load() // also while dlm_controld says nothing
	}
	st.NodeID, st.Node = s.node(nodeID)
	if st.Cluster != nil {
		st.Members = members(*st.Cluster, peers, names, st.NodeID, st.Node, s.o.Version)
	}
	st.warn(peers)
	if s.o.Peers != nil {
		st.warnAbsent(s.o.Peers)
	}
	if s.o.Warnings != nil {
		st.Warnings = append(st.Warnings, s.o.Warnings()...)
	}
	return st
}

func counts(held []locking.Holder) (c Counts) {
	resources, owners := map[locking.Ref]struct{}{}, map[int32]struct{}{}
	for _, h := range held {
		c.Locks++
		if h.Mode == locking.Shared {
			c.Shared++
		} else {
			c.Exclusive++
		}
		resources[h.Ref] = struct{}{}
		owners[h.Owner.PID] = struct{}{}
	}
	c.Resources, c.Owners = len(resources), len(owners)
	return c
}

// members puts together what dlm_controld, the peers and the configuration know.
func members(c Cluster, peers []PeerMember, names map[uint32]string, self uint32, name, version string) []Member {
	byID := map[uint32]*Member{}
	get := func(id uint32) *Member {
		m := byID[id]
		if m == nil {
			m = &Member{NodeID: id, Member: Unknown}
			byID[id] = m
		}
		return m
	}
	for _, n := range c.Nodes {
		m := get(n.NodeID)
		m.Member, m.NeedsFencing, m.Lost = No, n.NeedsFencing, n.Lost
		if n.Member {
			m.Member, m.Lost = Yes, nil
		}
	}
	for id, name := range names {
		m := get(id)
		m.Name = name
		if m.Member == Unknown && len(c.Nodes) > 0 && c.Error == "" {
			m.Member = No // dlm_controld has not heard of it
		}
	}
	for _, p := range peers {
		m := get(p.NodeID)
		m.Name, m.Version, m.Silent = p.Name, p.Version, p.Silent
	}
	if self != 0 {
		m := get(self)
		m.Self, m.Name, m.Version = true, name, version
	}
	list := []Member{}
	for _, m := range byID {
		list = append(list, *m)
	}
	slices.SortFunc(list, func(a, b Member) int { return int(a.NodeID) - int(b.NodeID) })
	return list
}

func (st *Status) warn(peers []PeerMember) {
	add := func(code, format string, args ...any) {
		st.Warnings = append(st.Warnings, Warning{code, fmt.Sprintf(format, args...)})
	}
	if c := st.Cluster; c != nil {
		// A guard that freezes and is not safe says so itself; so does one that is about to.
		if freezes := c.Guard != nil && (c.Guard.Mode == "freeze" || c.Guard.Mode == "auto"); c.Fencing == No && !c.Guarded && !freezes {
			add(WarnUnprotected, "unprotected: fencing is off (enable_fencing=0) and nothing guards this host: if it is cut off from the cluster, "+
				"other hosts get its locks while its virtual machines go on writing")
		}
		if g := c.Guard; g != nil {
			st.warnGuard(*g)
		}
		if c.Error != "" {
			add(WarnNoAnswer, "%s", c.Error)
		}
		if c.Quorate == No {
			add(WarnNoQuorum, "the cluster has no quorum: locks are refused (see corosync-quorumtool -s)")
		}
		switch c.Lockspace.State {
		case LockspaceDead:
			add(WarnReboot, "this host must be rebooted: %s", c.Lockspace.WaitsFor)
		case LockspaceJoining, LockspaceStopped:
			add(WarnLockspace, "the DLM lockspace does not run, and locks are refused: %s", c.Lockspace.WaitsFor)
		}
	}
	if d := st.Draining; d != nil {
		add(WarnDraining, "this host is being drained and grants no new locks ('vmlockctl drain --undo' ends that)")
	}
	var silent, other, different, rules, older []string
	own, ownRules := "", ""
	for _, p := range peers {
		if p.Self {
			own, ownRules = p.ConfigDigest, p.RulesDigest
		}
	}
	for _, p := range peers {
		name := fmt.Sprintf("%s (%d)", p.Name, p.NodeID)
		switch {
		case p.Self:
		case p.Silent:
			silent = append(silent, name)
		default:
			if p.Version != st.Version {
				other = append(other, name+" "+p.Version)
			}
			if own != "" && p.ConfigDigest != "" && p.ConfigDigest != own {
				different = append(different, name)
			}
			switch {
			case ownRules == "" || p.RulesDigest == ownRules:
			case p.RulesDigest == "":
				older = append(older, name)
			default:
				rules = append(rules, name)
			}
		}
	}
	if len(silent) > 0 {
		add(WarnSilent, "these nodes run vmlockd and do not answer: %s", strings.Join(silent, ", "))
	}
	if len(other) > 0 {
		add(WarnVersions, "this host runs vmlockd %s, and others: %s", st.Version, strings.Join(other, ", "))
	}
	if len(different) > 0 {
		add(WarnConfiguration, "the configuration of vmlockd on these nodes is not that of this host: %s", strings.Join(different, ", "))
	}
	if len(rules) > 0 {
		add(WarnRules, "these nodes name disks by other rules than this host ([[identity.rule]] in vmlockd.toml, or those of another version of vmlockd), so that one disk can have two names and be used twice: %s", strings.Join(rules, ", "))
	}
	if len(older) > 0 {
		add(WarnRules, "these nodes run a vmlockd that knows disks by their paths only, so that a disk can be used there and here: upgrade them before virtual machines are started or migrated: %s", strings.Join(older, ", "))
	}
}

// warnAbsent tells of members of the cluster on which no vmlockd runs.
func (st *Status) warnAbsent(peers Peers) {
	var without []string
	for _, m := range st.Members {
		if !m.Self && m.Member == Yes && m.Version == "" && !m.Silent && peers.Absent(m.NodeID) {
			without = append(without, fmt.Sprintf("%s (%d)", m.Name, m.NodeID))
		}
	}
	if len(without) > 0 {
		st.Warnings = append(st.Warnings, Warning{WarnNoDaemon, "no vmlockd runs on these members of the cluster, so nothing is locked for virtual machines there: " +
			strings.Join(without, ", ")})
	}
}
