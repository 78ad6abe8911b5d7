// Package controldtest is a dlm_controld in memory, for tests of what asks it questions. It speaks the real daemon's
// bytes, answers one connection per question, hangs when it is told to, and dies like the real one when somebody goes
// away without waiting for certain answers (see package controld).
package controldtest

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/dlm/controld/internal/wire"
)

// backlog is how many connections a daemon that accepts none can have (listen(s, 5) takes one more).
const backlog = 6

// State is what the daemon answers.
type State struct {
	Status     controld.Status
	Config     map[string]string // options as dlm.conf(5) names them
	Lockspaces []controld.Lockspace
	Nodes      map[string][]controld.Node // by lockspace, for every choice of nodes
}

// Daemon is a dlm_controld. Its methods may be called from any goroutine.
type Daemon struct {
	mu      sync.Mutex // guards what follows
	state   State
	dead    bool
	frozen  chan struct{} // nil unless it hangs; closed when that ends
	waiting int           // connections nobody has accepted
	asked   int
	conns   map[net.Conn]struct{}
}

// New makes the dlm_controld of node 1 in a healthy cluster of n nodes, with fencing, managing the lockspaces.
func New(n int, lockspaces ...string) *Daemon {
	d := &Daemon{conns: map[net.Conn]struct{}{}, state: State{
		Status: controld.Status{NodeID: 1, Quorate: true, Members: n, DaemonRing: 8, ClusterRing: 8, Monotime: 1000},
		Config: map[string]string{
			"enable_fencing": "1", "enable_quorum_fencing": "1", "enable_quorum_lockspace": "1",
			"enable_startup_fencing": "1", "post_join_delay": "30",
		},
		Nodes: map[string][]controld.Node{},
	}}
	for id := 1; id <= n; id++ {
		d.state.Status.Nodes = append(d.state.Status.Nodes, controld.DaemonNode{NodeID: id, Member: true, LeftReason: "unknown"})
	}
	for i, name := range lockspaces {
		d.state.Lockspaces = append(d.state.Lockspaces, controld.Lockspace{
			Name: name, GlobalID: uint32(i + 1), Started: controld.Change{Members: n, Joined: 1, Seq: 1, CombinedSeq: 1},
		})
		for id := 1; id <= n; id++ {
			d.state.Nodes[name] = append(d.state.Nodes[name], controld.Node{NodeID: id, Flags: controld.Member | controld.Started, AddedSeq: 1})
		}
	}
	return d
}

// Set changes what the daemon answers from now on.
func (d *Daemon) Set(f func(*State)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.state)
}

// Lose makes nodes leave the cluster by failure at that time; with fence they must be fenced. Quorum is what the
// majority makes it.
func (d *Daemon) Lose(at time.Time, fence bool, ids ...int) {
	d.Set(func(s *State) {
		st := &s.Status
		for i := range st.Nodes {
			n := &st.Nodes[i]
			if n.Member && slices.Contains(ids, n.NodeID) {
				n.Member, n.LeftReason, n.NeedFencing, n.Failed = false, "nodedown", fence, at
				st.Members--
			}
		}
		st.Quorate = 2*st.Members > len(st.Nodes)
		st.DaemonRing++
		st.ClusterRing++
	})
}

// Freeze makes it hang, as SIGSTOP does: connections are made, and answered when Thaw is called.
func (d *Daemon) Freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen == nil {
		d.frozen = make(chan struct{})
	}
}

// Thaw ends what Freeze began.
func (d *Daemon) Thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lockedThaw()
}

func (d *Daemon) lockedThaw() {
	if d.frozen != nil {
		close(d.frozen)
		d.frozen = nil
	}
}

// Kill ends the daemon. Connections end without an answer, and no more are made.
func (d *Daemon) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	for c := range d.conns {
		c.Close()
	}
	d.lockedThaw()
}

// Alive reports whether it still runs.
func (d *Daemon) Alive() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.dead
}

// Asked is how many connections were made so far.
func (d *Daemon) Asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// Client makes a client of the daemon.
func (d *Daemon) Client() *controld.Client { return controld.New(d.Dial) }

// Dial connects to the daemon.
func (d *Daemon) Dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case d.dead:
		return nil, syscall.ECONNREFUSED
	case d.frozen != nil && d.waiting >= backlog:
		return nil, syscall.EAGAIN
	}
	d.asked++
	d.waiting++
	client, server := net.Pipe()
	d.conns[server] = struct{}{}
	go d.serve(server, d.frozen)
	return client, nil
}

func (d *Daemon) serve(conn net.Conn, frozen <-chan struct{}) {
	defer func() {
		conn.Close()
		d.mu.Lock()
		delete(d.conns, conn)
		d.mu.Unlock()
	}()
	// A pipe has no buffer, so the request is taken at once, as a socket would.
	var buf [wire.HeaderSize]byte
	_, err := io.ReadFull(conn, buf[:])
	if frozen != nil {
		<-frozen
	}
	d.mu.Lock()
	d.waiting--
	if d.dead || err != nil {
		d.mu.Unlock()
		return
	}
	h, _ := wire.Decode[wire.DlmcHeader](buf[:])
	answer, signals := d.lockedAnswer(h)
	d.mu.Unlock()
	if _, err := conn.Write(answer); errors.Is(err, io.ErrClosedPipe) && signals && len(answer) > 0 {
		d.Kill() // SIGPIPE
	}
}

// lockedAnswer is the answer to a request, and whether the daemon writes it without MSG_NOSIGNAL.
func (d *Daemon) lockedAnswer(h wire.DlmcHeader) (answer []byte, signals bool) {
	if h.Magic != wire.Magic || h.Version>>16 != wire.Version>>16 {
		return nil, false
	}
	name, _, _ := strings.Cut(string(h.Name[:]), "\x00")
	i := slices.IndexFunc(d.state.Lockspaces, func(l controld.Lockspace) bool { return l.Name == name })
	reply := func(result int, body []byte) []byte {
		r := wire.DlmcHeader{Magic: wire.Magic, Version: wire.Version, Command: h.Command, Len: uint32(wire.HeaderSize + len(body)), Data: int32(result)}
		copy(r.Name[:], name)
		return append(wire.Append(nil, r), body...)
	}
	const noEntry = -int(syscall.ENOENT)
	switch h.Command {
	case wire.CmdDumpStatus:
		return encodeStatus(d.state.Status), false
	case wire.CmdDumpConfig:
		text := ""
		for _, key := range slices.Sorted(maps.Keys(d.state.Config)) {
			text += key + "=" + d.state.Config[key] + " (dlm.conf)\n"
		}
		return reply(0, []byte(text)), false
	case wire.CmdDumpPlocks:
		if i < 0 {
			return reply(noEntry, nil), false
		}
		return reply(0, nil), false
	case wire.CmdLockspaces:
		var body []byte
		for _, l := range d.state.Lockspaces {
			body = wire.Append(body, lockspace(l))
		}
		return reply(len(d.state.Lockspaces), body), true
	case wire.CmdLockspaceInfo:
		if i < 0 {
			return reply(noEntry, make([]byte, wire.LockspaceSize)), true
		}
		return reply(0, wire.Append(nil, lockspace(d.state.Lockspaces[i]))), true
	case wire.CmdLockspaceNodes:
		if i < 0 {
			return reply(noEntry, nil), true
		}
		nodes := d.state.Nodes[name]
		result := len(nodes)
		if result > int(h.Data) {
			nodes, result = nodes[:max(h.Data, 0)], -int(syscall.E2BIG)
		}
		var body []byte
		for _, n := range nodes {
			body = wire.Append(body, node(n))
		}
		return reply(result, body), true
	}
	return nil, false
}
