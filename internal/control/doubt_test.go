package control

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// refusing is a Settler that has a doubt and cannot end it.
type refusing struct{ why error }

func (refusing) Doubt() *Doubt { return &Doubt{Damage: "torn", Unexplained: []string{}} }

func (r refusing) Settle(context.Context, Caller, string) (int, error) { return 0, r.why }

// TestSettleRefused: who settles too early is told what to wait for, and not that
// something went wrong; the audit log has it.
func TestSettleRefused(t *testing.T) {
	for _, tc := range []struct {
		why    error
		status int
		code   string
	}{
		{&locking.Error{Kind: locking.KindUnavailable, Err: errors.New("no quorum")}, http.StatusServiceUnavailable, CodeNotNow},
		{errors.New("no quorum"), http.StatusInternalServerError, CodeFailed},
	} {
		w := newWorld(t, func(o *Options) { o.Settler = refusing{tc.why} })
		var e Error
		status := w.do("POST", "/v1/settle", `{"force":true,"reason":"x"}`, &e)
		if status != tc.status || e.Code != tc.code || !strings.Contains(e.Message, "no quorum") || !strings.Contains(e.Message, "the doubt is not over") {
			t.Errorf("status %d, %+v", status, e)
		}
		if a := w.audit.told; len(a) != 2 || a[1].Outcome != "no quorum" {
			t.Errorf("audited %+v", a)
		}
	}
}
