package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// program is the built lab command.
type program struct {
	t    *testing.T
	path string
}

func build(t *testing.T) program {
	return program{t, lab.Build(t, "github.com/vmlockd/vmlockd/lab/cmd/lab")}
}

// run runs it, and wants the exit status and each text of want on stdout, or on
// stderr if the status is that of a failure.
func (p program) run(stdin string, status int, want []string, args ...string) (stdout, stderr string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, args...)
	var out, errs bytes.Buffer
	// A lab that lives on must not keep the output of "up" open.
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = strings.NewReader(stdin), &out, &errs, 10*time.Second
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("lab %v: %v", args, err)
	}
	stdout, stderr = out.String(), errs.String()
	if got := cmd.ProcessState.ExitCode(); got != status {
		p.t.Errorf("lab %v: status %d, want %d\n%s%s", args, got, status, stdout, stderr)
	}
	said := stdout
	if status != 0 {
		said = stderr
	}
	for _, w := range want {
		if !strings.Contains(said, w) {
			p.t.Errorf("lab %v does not say %q:\n%s%s", args, w, stdout, stderr)
		}
	}
	return stdout, stderr
}

// TestCommandLine needs no lab.
func TestCommandLine(t *testing.T) {
	p := build(t)
	none := fmt.Sprintf("none-%d", os.Getpid())
	for _, tc := range []struct {
		status int
		want   string
		args   []string
	}{
		{0, "Exit status", nil},
		{0, "A first round", []string{"--help"}},
		{0, "--fencing", []string{"up", "--help"}},
		{2, "--help", []string{"--colour"}},
		{2, "--help", []string{"up", "three"}},
		{2, "--help", []string{"up", "--nodes", "three"}},
		{2, "--help", []string{"cut"}},
		{2, "--help", []string{"exec", "1"}},
		{1, none, []string{"down", "--name", none}},
		{1, none, []string{"status", "--name", none}},
		{1, none, []string{"exec", "--name", none, "1", "true"}},
	} {
		p.run("", tc.status, []string{tc.want}, tc.args...)
	}
}

// TestRound is a first round with a lab of one node, as --help tells it.
func TestRound(t *testing.T) {
	lab.Need(t, lab.Config{Nodes: 1})
	p := build(t)
	name := fmt.Sprintf("round-%d", os.Getpid())
	logs := filepath.Join(t.TempDir(), "logs")
	// on puts the name of the lab behind a command.
	on := func(command string, args ...string) []string {
		return append([]string{command, "--name", name}, args...)
	}
	running := func() bool {
		stdout, _ := p.run("", 0, nil, "list")
		return slices.Contains(strings.Fields(stdout), name)
	}
	t.Cleanup(func() {
		if running() {
			p.run("", 0, nil, on("down")...)
		}
	})
	up := on("up", "--nodes", "1", "--logs", logs)
	p.run("", 0, []string{`Lab "` + name + `" is up`, "node1", logs, "lab down --name " + name}, up...)
	if !running() {
		t.Error("the lab is not in the list")
	}
	p.run("", 1, []string{name}, up...) // there is one already

	stdout, stderr := p.run("in\n", 7, nil, on("exec", "-i", "1", "--", "sh", "-c", "cat; hostname; echo err >&2; exit 7")...)
	if stdout != "in\nnode1\n" || stderr != "err\n" {
		t.Errorf("exec: stdout %q, stderr %q", stdout, stderr)
	}
	p.run("", 2, []string{"node", "--help"}, on("exec", "2", "true")...)
	p.run("", 1, []string{"/no/such/program"}, on("exec", "1", "/no/such/program")...)
	p.run("", 0, []string{"quorate 1"}, on("exec", "1", "dlm_tool", "status")...)

	status := func() lab.NodeStatus {
		t.Helper()
		stdout, _ := p.run("", 0, nil, on("status", "--json")...)
		var st struct{ Nodes []lab.NodeStatus }
		if err := json.Unmarshal([]byte(stdout), &st); err != nil || len(st.Nodes) != 1 {
			t.Fatalf("%v: %s", err, stdout)
		}
		return st.Nodes[0]
	}
	if st := status(); st.State != lab.NodeRunning || st.Cut {
		t.Errorf("after up: %+v", st)
	}
	p.run("", 0, nil, on("cut", "1")...)
	if st := status(); st.State != lab.NodeRunning || !st.Cut {
		t.Errorf("after cut: %+v", st)
	}
	p.run("", 0, []string{"NETWORK", "cut", "corosync"}, on("status")...)
	p.run("", 0, nil, on("heal", "node1")...)
	if st := status(); st.Cut {
		t.Errorf("after heal: %+v", st)
	}
	p.run("", 0, nil, on("power-cut", "1")...)
	if st := status(); st.State != lab.NodeOff {
		t.Errorf("after power-cut: %+v", st)
	}
	p.run("", 1, []string{"no power"}, on("exec", "1", "true")...)
	p.run("", 0, nil, on("boot", "1")...)
	p.run("", 0, nil, on("exec", "1", "true")...)
	p.run("", 2, []string{"--help"}, on("cut", "2")...)
	p.run("", 0, []string{"node 1: boot 2"}, on("logs", "1", "console")...)

	p.run("", 0, nil, on("down")...)
	if running() {
		t.Error("the lab is in the list after its end")
	}
	if _, err := os.Stat(filepath.Join(lab.RunDir, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is still there: %v", err)
	}
	if _, err := os.Stat(logs); err != nil {
		t.Errorf("the logs are gone: %v", err)
	}
	p.run("", 1, []string{name}, on("down")...)
}
