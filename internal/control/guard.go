package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Guard acts for an operator. It is absent where nothing is guarded.
type Guard interface {
	// ConfirmDead ends the hold-off for a node that is off. It is an *Error with
	// CodeNodeMember if the node is a member of the cluster; any other error says why
	// it cannot be done now.
	ConfirmDead(node uint32) error
}

// GuardState is how the guard of this host is.
type GuardState struct {
	Mode     string  `json:"mode"`           // "fencing", "freeze", "auto" while it is not known which, "off"
	Promise  bool    `json:"promise"`        // what owns locks here is stopped when this host loses the cluster
	Lost     string  `json:"lost,omitempty"` // why it has lost it
	Unsafe   string  `json:"unsafe,omitempty"`
	Refuses  string  `json:"refuses,omitempty"` // why nothing new is granted now
	Grace    float64 `json:"grace_seconds"`
	HoldOff  float64 `json:"hold_off_seconds"`
	Least    float64 `json:"least_hold_off_seconds"` // 0 while corosync's timeouts are not known
	Watchdog string  `json:"watchdog,omitempty"`     // "open", "closed", or what is wrong
	// WatchdogStays are watchdogs that cannot be stopped any more (nowayout), so that this host is reset if vmlockd ends: why, and what to do.
	WatchdogStays []string    `json:"watchdog_stays,omitempty"`
	Stopped       []StoppedVM `json:"stopped"`
	// NotStopped go on although Lost, and other hosts may get their disks.
	NotStopped []LooseVM      `json:"not_stopped"`
	Vanished   []VanishedNode `json:"vanished"`
}

// StoppedVM is a process that was stopped.
type StoppedVM struct {
	VM   string  `json:"vm"`
	UUID string  `json:"uuid"`
	PID  int32   `json:"pid"`
	Left float64 `json:"left_seconds"` // until it is killed
	// Stays: it is not killed then, but stays stopped for an operator (on_loss "freeze").
	Stays bool `json:"stays,omitempty"`
}

// LooseVM is a process that nobody stops: on_loss says so, or there is no such process.
type LooseVM struct {
	VM   string `json:"vm"`
	UUID string `json:"uuid"`
	PID  int32  `json:"pid"` // 0 if it is not known
}

// VanishedNode is a node that nothing new is granted because of.
type VanishedNode struct {
	NodeID  uint32  `json:"node_id"`
	Left    float64 `json:"left_seconds"`
	Forever bool    `json:"forever"` // no time is enough
	// Promised: its guard had promised to stop everything. If it had, Forever means
	// that quorum is no majority here.
	Promised bool `json:"promised"`
	Seen     bool `json:"seen"` // it was seen to vanish; otherwise it was away when this host got into the cluster
}

// ConfirmDeadRequest is the body of POST /v1/confirm-dead.
type ConfirmDeadRequest struct {
	Node   string `json:"node"`   // number or name
	Reason string `json:"reason"` // must be there
}

// ConfirmedDead answers it.
type ConfirmedDead struct {
	NodeID uint32 `json:"node_id"`
	Name   string `json:"name"`
	Note   string `json:"note,omitempty"` // what did not work besides; "" if all did
}

func (s *Server) confirmDead(w http.ResponseWriter, r *http.Request) {
	var q ConfirmDeadRequest
	if !body(w, r, &q) {
		return
	}
	switch {
	case s.o.Guard == nil:
		fail(w, http.StatusConflict, CodeNoCluster, "nothing is guarded here (the backend is \"local\", or guard.mode is \"off\"), so no host that vanished is waited for, and there is nothing to confirm")
		return
	case strings.TrimSpace(q.Reason) == "":
		fail(w, http.StatusBadRequest, CodeBadRequest, "a \"reason\" is needed, which is logged: how is it known that the node is off?")
		return
	case len(q.Reason) > maxReason:
		fail(w, http.StatusBadRequest, CodeBadRequest, fmt.Sprintf("\"reason\" is longer than %d bytes", maxReason))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	st := s.Status(ctx)
	node, bad := oneNode(st.nodes(), q.Node)
	if bad != nil {
		failNode(w, bad)
		return
	}
	a := Action{Time: time.Now(), What: "confirm-dead", Forced: true, Node: node.NodeID, Who: callerOf(r.Context()), Reason: q.Reason}
	if !s.audit(w, r.Context(), a) {
		return
	}
	err := s.o.Guard.ConfirmDead(node.NodeID)
	a.Outcome = "done"
	if err != nil {
		a.Outcome = err.Error()
	}
	note := s.audited(a)
	if err != nil {
		code := CodeNotNow
		var e *Error
		if errors.As(err, &e) {
			code = e.Code
		}
		fail(w, http.StatusConflict, code, joined(err.Error(), note))
		return
	}
	answer(w, ConfirmedDead{NodeID: node.NodeID, Name: node.Name, Note: note})
}
