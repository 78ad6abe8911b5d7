package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// auditPatience bounds how long it may take to record what was done: by then it is
// done, and whoever asked waits for the answer.
const auditPatience = 5 * time.Second

// maxReason bounds, in bytes, what an operator says why.
const maxReason = 4096

func (s *Server) release(w http.ResponseWriter, r *http.Request) {
	var q ReleaseRequest
	if !body(w, r, &q) {
		return
	}
	switch {
	case q.Resource == "" && q.Node == "":
		fail(w, http.StatusBadRequest, CodeBadRequest, "\"resource\" is empty: name what is to be released")
		return
	case len(q.Reason) > maxReason:
		fail(w, http.StatusBadRequest, CodeBadRequest, fmt.Sprintf("\"reason\" is longer than %d bytes", maxReason))
		return
	case q.Force && strings.TrimSpace(q.Reason) == "":
		fail(w, http.StatusBadRequest, CodeBadRequest, "a forced release needs a \"reason\", which is logged")
		return
	}
	if q.Node != "" {
		ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
		defer cancel()
		id, name := s.self(ctx)
		if !isNode(q.Node, id, name) {
			s.releaseOfNode(ctx, w, q)
			return
		}
		if q.Resource == "" {
			fail(w, http.StatusBadRequest, CodeBadRequest, "that is this host: name what is to be released")
			return
		}
	}
	ref := locking.Ref{Lockspace: q.Lockspace, Name: q.Resource}
	// ForceRelease asks this again once nobody can come or go any more: who came
	// after the operator had looked keeps the lock.
	only := func(h locking.Holder) bool {
		return (q.PID == nil || h.Owner.PID == *q.PID) && (q.Holders == nil || slices.ContainsFunc(q.Holders, func(o Seen) bool { return o.is(h) }))
	}
	a := Action{Time: time.Now(), What: "release", Forced: q.Force, Ref: ref, Who: callerOf(r.Context()), Reason: q.Reason}
	for _, h := range s.o.Locks.Holders() {
		if h.Ref == ref && only(h) {
			a.Holders = append(a.Holders, h)
		}
	}
	for _, o := range q.Holders {
		if !slices.ContainsFunc(a.Holders, o.is) {
			fail(w, http.StatusNotFound, CodeNotHeld, fmt.Sprintf("process %d does not hold %s any more since %s: nothing was released, look again who holds it",
				o.PID, q.Resource, o.Since.UTC().Format(time.RFC3339)))
			return
		}
	}
	if len(a.Holders) == 0 {
		failLocking(w, &locking.Error{Kind: locking.KindNotLocked, Ref: ref})
		return
	}
	if !s.audit(w, r.Context(), a) {
		return
	}
	// The client may go away, and the release must end all the same: it has
	// request_timeout for that.
	released, err := s.o.Locks.ForceRelease(context.WithoutCancel(r.Context()), ref, only, q.Force)
	a.Holders, a.Outcome = released, "done"
	if err != nil {
		a.Outcome = err.Error()
	}
	note := s.audited(a)
	var e *locking.Error
	switch {
	case err != nil && len(released) > 0 && errors.As(err, &e) && errors.Is(e.Err, locking.ErrUnderway):
		answer(w, Released{Released: s.ours(r.Context(), released), Note: joined(err.Error(), note)})
	case err != nil && note != "":
		failLocking(w, fmt.Errorf("%w; %s", err, note))
	case err != nil:
		failLocking(w, err)
	default:
		answer(w, Released{Released: s.ours(r.Context(), released), Note: note})
	}
}

// joined makes one note of two, of which each may be empty.
func joined(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

func (o Seen) is(h locking.Holder) bool { return h.Owner.PID == o.PID && h.Since.Equal(o.Since) }

func (s *Server) ours(ctx context.Context, held []locking.Holder) []Holder {
	id, name := s.self(ctx)
	list := make([]Holder, len(held))
	for i, h := range held {
		list[i] = holderOf(id, name, h)
	}
	return list
}

// releaseOfNode says what has become of the locks of another node. Nothing can be
// released here: the DLM gives up all locks of a node as soon as that is not a
// member any more and was fenced, where fencing is on.
func (s *Server) releaseOfNode(ctx context.Context, w http.ResponseWriter, q ReleaseRequest) {
	if s.o.Cluster == nil {
		fail(w, http.StatusConflict, CodeNoCluster, "the backend of this daemon is \"local\", so it knows no other node: run 'vmlockctl release' there")
		return
	}
	st := s.Status(ctx)
	node, bad := oneNode(st.nodes(), q.Node)
	switch {
	case bad != nil && bad.Code == CodeNoNode && st.Cluster.Error != "":
		fail(w, http.StatusServiceUnavailable, CodeNotNow, st.Cluster.Error)
	case bad != nil:
		failNode(w, bad)
	case node.Member == Yes:
		fail(w, http.StatusConflict, CodeNodeMember, fmt.Sprintf("node %d is a member of the cluster and may use its locks: run 'vmlockctl release' there", node.NodeID))
	case node.Member == Unknown:
		fail(w, http.StatusServiceUnavailable, CodeNotNow, fmt.Sprintf("it is not known whether node %d is a member of the cluster: %s", node.NodeID, orElse(st.Cluster.Error, "see 'dlm_tool status'")))
	case node.NeedsFencing:
		fail(w, http.StatusConflict, CodeNotNow, fmt.Sprintf("the DLM keeps the locks of node %d until it is fenced. "+
			"If you have seen yourself that it is off, 'dlm_tool fence_ack %d' says so to the DLM; if it is not, that destroys disks", node.NodeID, node.NodeID))
	case st.Cluster.Lockspace.State != LockspaceRunning:
		fail(w, http.StatusServiceUnavailable, CodeNotNow, fmt.Sprintf("the DLM gives up the locks of node %d when its lockspace runs again, which waits: %s",
			node.NodeID, orElse(st.Cluster.Lockspace.WaitsFor, "see 'dlm_tool ls'")))
	default:
		answer(w, Released{Released: []Holder{}, Note: fmt.Sprintf(
			"node %d is not a member of the cluster, and the DLM has given up all its locks already: there is nothing to release%s", node.NodeID, st.heldOff(node.NodeID))})
	}
}

// heldOff is what follows if its disks are refused although a node's locks are gone.
func (st *Status) heldOff(node uint32) string {
	if st.Cluster.Guard == nil {
		return ""
	}
	for _, v := range st.Cluster.Guard.Vanished {
		if v.NodeID == node {
			return fmt.Sprintf(". Its disks are refused all the same, since it may be alive and cut off, and write: once you have seen that it is off, 'vmlockctl confirm-dead %d' says so", node)
		}
	}
	return ""
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func (s *Server) drained(w http.ResponseWriter, r *http.Request) {
	if _, ok := query(w, r); ok {
		s.answerDrain(w, r, "")
	}
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	var q DrainRequest
	if !body(w, r, &q) {
		return
	}
	if len(q.Reason) > maxReason {
		fail(w, http.StatusBadRequest, CodeBadRequest, fmt.Sprintf("\"reason\" is longer than %d bytes", maxReason))
		return
	}
	who := callerOf(r.Context())
	a := Action{Time: time.Now(), What: "drain", Who: who, Reason: q.Reason}
	d := &Drained{Since: a.Time.UTC(), By: who.Login, Reason: q.Reason}
	if q.Undo {
		a.What, d = "undrain", nil
	}
	note := ""
	if q.Undo != (s.o.Drain.Drained() == nil) { // else there is nothing to do
		if !s.audit(w, r.Context(), a) {
			return
		}
		err := s.o.Drain.Drain(d)
		a.Outcome = "done"
		if err != nil {
			a.Outcome = err.Error()
		}
		note = s.audited(a)
		if err != nil {
			fail(w, http.StatusInternalServerError, CodeFailed, joined(err.Error(), note))
			return
		}
	}
	s.answerDrain(w, r, note)
}

func (s *Server) answerDrain(w http.ResponseWriter, r *http.Request, note string) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	d := s.o.Drain.Drained()
	left := Holders{Holders: s.here(ctx)}
	left.pick(func(Holder) bool { return true })
	answer(w, Drain{Draining: d != nil, Drained: d, Left: left.Holders, Waiting: waitersOf(s.o.Locks.Waiting()),
		Returning: returnersOf(s.o.Locks.Returning()), Note: note})
}

// audit tells what is about to be done, and answers if that may not be done
// because it could not be recorded.
func (s *Server) audit(w http.ResponseWriter, ctx context.Context, a Action) bool {
	s.o.Log.Warn("an operator acts: "+a.What, a.attrs()...)
	if s.o.Audit == nil {
		return true
	}
	if err := s.o.Audit.Audit(ctx, a); err != nil {
		fail(w, http.StatusInternalServerError, CodeFailed, fmt.Sprintf("nothing was done, because it could not be recorded: %v", err))
		return false
	}
	return true
}

// audited tells how it went. The note is for whoever asked, if that could not be
// recorded.
func (s *Server) audited(a Action) (note string) {
	s.o.Log.Warn("an operator acted: "+a.What, append(a.attrs(), "outcome", a.Outcome)...)
	if s.o.Audit == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), auditPatience)
	defer cancel()
	if err := s.o.Audit.Audit(ctx, a); err != nil {
		s.o.Log.Error("what an operator did could not be recorded", "what", a.What, "reason", err)
		return fmt.Sprintf("it was asked for in the record, and what came of it could not be recorded: %v", err)
	}
	return ""
}

func (a Action) attrs() []any {
	attrs := []any{"user", a.Who.Login, "uid", a.Who.UID, "by_pid", a.Who.PID, "why", a.Reason}
	if a.Node != 0 {
		attrs = append(attrs, "node", a.Node)
	}
	if a.What == "release" {
		attrs = append(attrs, "lockspace", a.Ref.Lockspace, "name", a.Ref.Name, "forced", a.Forced, "holders", len(a.Holders))
		if len(a.Holders) > 0 {
			attrs = append(attrs, "holder", a.Holders[0].String())
		}
	}
	return attrs
}

// callerOf is who asks. The kernel says who logged in (loginuid, proc(5)), which
// su and sudo do not change.
func callerOf(ctx context.Context) Caller {
	peer, _ := ctx.Value(peerKey{}).(rpc.Peer)
	c := Caller{UID: peer.UID, PID: peer.PID}
	uid := strconv.FormatUint(uint64(peer.UID), 10)
	const unset = "4294967295"
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/loginuid", peer.PID)); err == nil {
		if id := strings.TrimSpace(string(text)); id != "" && id != unset {
			uid = id
		}
	}
	c.Login = uid
	if u, err := user.LookupId(uid); err == nil {
		c.Login = u.Username
	}
	return c
}
