package lab_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// soon bounds the conditions that the tests wait for.
const soon = 90 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, errors.New("not within "+d.String()))
	t.Cleanup(cancel)
	return ctx
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCluster(t *testing.T) {
	l := lab.ForTest(t, lab.Config{})
	ctx := within(t, soon)
	for _, n := range l.Nodes() {
		m, err := n.Membership(ctx)
		ok(t, err)
		if !m.Quorate || len(m.Members) != 3 {
			t.Errorf("%s: %+v", n.Name(), m)
		}
		res, err := n.Exec(ctx, "sh", "-c", "hostname; echo oops >&2; exit 3")
		ok(t, err)
		if strings.TrimSpace(res.Stdout) != n.Name() || res.Stderr != "oops\n" || res.Status != 3 {
			t.Errorf("%s: %v", n.Name(), res)
		}
	}
}
