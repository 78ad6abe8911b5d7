package packaging_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// shellfuncs are those of resource-agents that the agent uses.
const shellfuncs = `OCF_SUCCESS=0 OCF_ERR_GENERIC=1 OCF_ERR_UNIMPLEMENTED=3 OCF_ERR_CONFIGURED=6 OCF_NOT_RUNNING=7
ocf_log() { echo "$@" >&2; }
`

// sleeper starts a program of that name that runs until it is killed.
func sleeper(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "3600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// The OCF agent takes a vmlockd for running only if it is one, and not one that has ended and that nobody has waited for yet: Pacemaker
// would be told that all is well, and a stop would not end.
func TestAgentKnowsWhatRuns(t *testing.T) {
	const running, notRunning = 0, 7
	for name, tc := range map[string]struct {
		program string
		ended   bool
		want    int
	}{
		"it runs":                    {"vmlockd", false, running},
		"it has ended, and a zombie": {"vmlockd", true, notRunning},
		"the pid is another one's":   {"else", false, notRunning},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "ocf-shellfuncs"), []byte(shellfuncs), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := sleeper(t, tc.program)
			if tc.ended {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := lab.WaitFor(ctx, "it to be as it is to be", func(context.Context) (bool, error) {
				b, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
				return strings.Contains(string(b), "Name:\t"+tc.program+"\n") && strings.Contains(string(b), "State:\tZ") == tc.ended, err
			}); err != nil {
				t.Fatal(err)
			}
			pid := filepath.Join(dir, "pid")
			if err := os.WriteFile(pid, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			agent := func(action string) int {
				c := exec.CommandContext(ctx, "sh", packaging+"ocf/vmlockd", action)
				c.Env = append(os.Environ(), "OCF_FUNCTIONS_DIR="+dir, "OCF_RESKEY_pid="+pid)
				out, err := c.CombinedOutput()
				var status *exec.ExitError
				if err != nil && !errors.As(err, &status) || ctx.Err() != nil {
					t.Fatalf("%s: %v, %v\n%s", action, err, ctx.Err(), out)
				}
				return c.ProcessState.ExitCode()
			}
			if got := agent("monitor"); got != tc.want {
				t.Errorf("monitor ends with %d, and not %d", got, tc.want)
			}
			if tc.want == running {
				return
			}
			if got := agent("stop"); got != 0 {
				t.Errorf("stop ends with %d", got)
			}
			if _, err := os.Stat(pid); err == nil {
				t.Error("after a stop the pid is there")
			}
		})
	}
}
