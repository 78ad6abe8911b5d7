package daemon

import (
	"context"
	"time"

	"github.com/vmlockd/vmlockd/internal/audit"
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
