package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"/srv/vm/web.img":     "/srv/vm/web.img",
		"größe":               "größe",
		"\x1b[31mred":         `\x1b[31mred`,
		"two\nlines\t\x00":    `two\x0alines\x09\x00`,
		"not \xff utf-8":      `not \xff utf-8`,
		"right\u202eto left":  `right\u202eto left`,
		"\u009b1m is an \\[ ": `\u009b1m is an \[ `,
	} {
		if got := clean(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b]0;title\x07")
	f.Fuzz(func(t *testing.T, s string) {
		var shown string
		testenv.Bounded(t, 10, len(s), func() { shown = clean(s) })
		for _, r := range shown {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q has kept %U", s, r)
			}
		}
	})
}

func TestTable(t *testing.T) {
	p := &page{colour: true}
	p.table([]string{"A", "B", "C"}, [][]string{{"1", "", "x"}, {"22", "", "y"}})
	want := bold + "A   C" + plain + "\n1   x\n22  y\n"
	if p.String() != want {
		t.Errorf("got %q, want %q", p.String(), want)
	}
}

func TestColourIsForTerminals(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if wantsColour(f) || wantsColour(new(bytes.Buffer)) {
		t.Error("a file and a buffer get colour")
	}
	// A terminal's master is one as well.
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !wantsColour(tty) {
		t.Error("a terminal gets no colour")
	}
	t.Setenv("NO_COLOR", "1")
	if wantsColour(tty) {
		t.Error("NO_COLOR is not heeded")
	}
}

func TestStatusOfCluster(t *testing.T) {
	st := control.Status{
		Version: "1", Backend: "cluster", NodeID: 1, Node: "n1",
		Cluster: &control.Cluster{Name: "c", Quorate: control.No, Fencing: control.No,
			Lockspace: control.DLMLockspace{Name: "vmlockd", State: control.LockspaceStopped, WaitsFor: "the cluster has no quorum"}},
		Members: []control.Member{
			{NodeID: 1, Name: "n1", Self: true, Member: control.Yes, Version: "1"},
			{NodeID: 2, Name: "n2", Member: control.No, NeedsFencing: true},
		},
		Warnings: []control.Warning{{Code: control.WarnUnprotected, Message: "unprotected: \x1b"}},
	}
	p := &page{}
	p.status(st)
	for _, want := range []string{"quorum      no", "fencing     off", "lockspace   vmlockd stopped: the cluster has no quorum",
		"2     n2    no      unknown  must be fenced", "1     n1    yes     1        this host", `warning: unprotected: \x1b`} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("lacks %q:\n%s", want, p)
		}
	}
}

func TestIncomplete(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{Streams: Streams{Out: &out, Err: &errs}}
	a.incomplete(nil)
	if a.status != exitOK || errs.Len() != 0 {
		t.Errorf("nothing is missing: status %d, %q", a.status, &errs)
	}
	a.incomplete([]control.Missing{{NodeID: 2, Node: "n2", Error: "no answer"}, {Error: "nobody can be asked"}})
	if a.status != exitIncomplete || !strings.Contains(errs.String(), "incomplete, n2 (node 2): no answer") || !strings.Contains(errs.String(), "other hosts: nobody") {
		t.Errorf("status %d, %q", a.status, &errs)
	}
}

// TestExits: every error has a status that --help names, and can be written as JSON.
func TestExits(t *testing.T) {
	for _, code := range []string{
		control.CodeBadRequest, control.CodeNotFound, control.CodeTooMany, control.CodeNotHeld, control.CodeOwnerLives, control.CodeNodeMember,
		control.CodeNoNode, control.CodeNoCluster, control.CodeNotNow, control.CodeFailed, control.CodeUnavailable, control.CodeForbidden,
	} {
		var out bytes.Buffer
		a := &app{Streams: Streams{Out: &out}, json: true}
		a.fail(&control.Error{Code: code, Message: "m"})
		if _, ok := exits[a.status]; !ok || a.status == exitOK {
			t.Errorf("%s has status %d, which --help does not name", code, a.status)
		}
		var f control.Failure
		if err := json.Unmarshal(out.Bytes(), &f); err != nil || f.Error.Code != code {
			t.Errorf("%s as JSON is %s, %v", code, &out, err)
		}
	}
	if f := asFailure(context.DeadlineExceeded); f.status != exitNoDaemon {
		t.Errorf("no answer in time is status %d", f.status)
	}
	if f := asFailure(errors.New("x")); f.status != exitFailed {
		t.Errorf("an error of any kind is status %d", f.status)
	}
}
