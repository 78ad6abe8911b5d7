package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/audit"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// auditPatience bounds how long the disk of the audit log may take to say
// whether it can be written.
const auditPatience = 5 * time.Second

// openAudit makes the audit log known, and says early if it cannot be written:
// the day when something has to be forced is a bad one to find out.
func (i *instance) openAudit() {
	i.audit = audit.New(i.cfg.AuditLog)
	i.serving.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), auditPatience)
		defer cancel()
		if err := i.audit.Check(ctx); err != nil {
			i.log.Warn("the audit log cannot be written: forced actions are refused until it can", "event", "audit-unwritable",
				"file", i.audit.Path(), "reason", err)
		}
	})
}

// auditor writes what operators do through the control socket.
type auditor struct{ log *audit.Log }

func (a auditor) Audit(ctx context.Context, c control.Action) error {
	r := audit.Action{
		Time: c.Time, Action: c.What, UID: c.Who.UID, Login: c.Who.Login, PID: c.Who.PID, Reason: c.Reason, Result: c.Outcome,
	}
	if r.Result == "" {
		r.Result = audit.Asked
	}
	if c.Ref != (locking.Ref{}) {
		r.Target = strings.TrimPrefix(c.Ref.Lockspace+" "+c.Ref.Name, " ")
	}
	if c.Node != 0 {
		r.Target = fmt.Sprintf("node %d", c.Node)
	}
	if r.Target == "" {
		r.Target = "this host"
	}
	if r.Reason == "" {
		r.Reason = "not given"
	}
	if len(c.Unexplained) > 0 {
		r.Target += "; explained by no record: " + strings.Join(c.Unexplained, ", ")
	}
	for _, h := range c.Holders {
		r.Target += "; held by " + h.String()
	}
	return a.log.Record(ctx, r)
}
