package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// WarnDoubt is the code of a Warning: the journal was damaged, and not settled.
const WarnDoubt = "doubt"

// Settler knows of a damaged journal, and ends the doubt that comes with it.
type Settler interface {
	// Doubt is nil if there is none. It returns at once, also while Settle is under way.
	Doubt() *Doubt
	// Settle releases what nothing explains, and returns how many locks that were. An
	// error of locking.KindUnavailable says what to wait for: nothing was released.
	Settle(ctx context.Context, by Caller, why string) (released int, err error)
}

// Doubt is what nobody knows after the journal was damaged.
type Doubt struct {
	Damage      string   `json:"damage"`      // what was found, and where the damaged file is
	Unexplained []string `json:"unexplained"` // files or DLM resources that are locked, and no record says for whom
	Orphans     bool     `json:"orphans"`     // the kernel may have further locks of this host, which cannot be listed
}

// Settled answers /v1/settle.
type Settled struct {
	*Doubt        // nil if there is none, or not any more
	Doubtful bool `json:"doubtful"`
	Released int  `json:"released"`
}

// SettleRequest is the body of POST /v1/settle.
type SettleRequest struct {
	Force  bool   `json:"force"` // must be set: what is released may be in use
	Reason string `json:"reason"`
}

func (s *Server) doubt(w http.ResponseWriter, r *http.Request) {
	if _, ok := query(w, r); ok {
		d := s.o.Settler.Doubt()
		answer(w, Settled{Doubt: d, Doubtful: d != nil})
	}
}

func (s *Server) settleDoubt(w http.ResponseWriter, r *http.Request) {
	var q SettleRequest
	if !body(w, r, &q) {
		return
	}
	switch {
	case len(q.Reason) > maxReason:
		fail(w, http.StatusBadRequest, CodeBadRequest, fmt.Sprintf("\"reason\" is longer than %d bytes", maxReason))
		return
	case !q.Force:
		fail(w, http.StatusConflict, CodeOwnerLives, "what no record explains may be in use by running virtual machines: \"force\" gives it back all the same")
		return
	case strings.TrimSpace(q.Reason) == "":
		fail(w, http.StatusBadRequest, CodeBadRequest, "this needs a \"reason\", which is logged")
		return
	}
	d := s.o.Settler.Doubt()
	if d == nil {
		answer(w, Settled{})
		return
	}
	a := Action{Time: time.Now(), What: "settle", Forced: true, Unexplained: d.Unexplained, Who: callerOf(r.Context()), Reason: q.Reason}
	if !s.audit(w, r.Context(), a) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), settleTimeout)
	defer cancel()
	n, err := s.o.Settler.Settle(ctx, a.Who, q.Reason)
	a.Outcome = "done"
	if err != nil {
		a.Outcome = err.Error()
	}
	s.audited(a)
	if e, ok := errors.AsType[*locking.Error](err); ok && e.Kind == locking.KindUnavailable {
		fail(w, http.StatusServiceUnavailable, CodeNotNow, fmt.Sprintf("nothing was released, and the doubt is not over: %v", err))
		return
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, CodeFailed, fmt.Sprintf("%d locks were released, and the doubt is not over: %v", n, err))
		return
	}
	answer(w, Settled{Released: n})
}

// settleTimeout bounds how long kernel and file systems may take over it.
const settleTimeout = time.Minute

// Doubt asks what is in doubt.
func (c *Client) Doubt(ctx context.Context) (d Settled, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/settle", nil, nil, &d)
	return d, err
}

// Settle releases what is in doubt.
func (c *Client) Settle(ctx context.Context, q SettleRequest) (d Settled, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/settle", nil, q, &d)
	return d, err
}
