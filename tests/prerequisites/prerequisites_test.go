// Package prerequisites_test starts the real daemon where something is missing
// or wrong, and reads what it says to the one who started it.
package prerequisites_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

const (
	vmlockd   = "github.com/vmlockd/vmlockd/cmd/vmlockd"
	vmlockctl = "github.com/vmlockd/vmlockd/cmd/vmlockctl"
)

// TestCommandLine needs nothing but the program.
func TestCommandLine(t *testing.T) {
	vmlockd := program(vmlockd)
	dir := t.TempDir()
	config := func(text string) string {
		path := filepath.Join(dir, "vmlockd.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		name   string
		args   func() []string
		status int
		want   []string
	}{
		{"help", func() []string { return []string{"--help"} }, 0, []string{"lock_manager", "--config", "--check-config", "Exit status"}},
		{"version", func() []string { return []string{"--version"} }, 0, []string{"vmlockd"}},
		{"unknown flag", func() []string { return []string{"--colour"} }, 2, []string{"--colour", "--help"}},
		{"argument", func() []string { return []string{"start"} }, 2, []string{"start"}},
		{"good configuration", func() []string { return []string{"--check-config", "-f", config("backend = \"cluster\"\n")} }, 0, []string{"no mistakes"}},
		{"unknown key", func() []string { return []string{"--check-config", "--config", config("\nbackand = \"local\"\n")} }, 2, []string{"vmlockd.toml:2: backand"}},
		{"bad value at the start", func() []string { return []string{"--config", config("max_clients = 0\n")} }, 2, []string{"vmlockd.toml:1: max_clients"}},
		{"file that is named and missing", func() []string { return []string{"--config", dir + "/none"} }, 2, []string{dir + "/none", "no such file"}},
		{"socket that is a file", func() []string {
			return []string{"--config", config("socket = \"" + dir + "/vmlockd.toml\"\nrun_dir = \"" + dir + "/run\"\n")}
		}, 1, []string{dir + "/vmlockd.toml"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, vmlockd, tc.args()...)
			var out bytes.Buffer
			// A file would also do; the process that keeps descriptors must not hold a pipe open.
			cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, 5*time.Second
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tc.status {
				t.Errorf("exit status %d, want %d", got, tc.status)
			}
			for _, w := range tc.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("it does not say %q:\n%s", w, out.String())
				}
			}
		})
	}
}

// TestClusterParts takes away, one by one, what the cluster backend needs. It
// never serves without them, not even local locks.
func TestClusterParts(t *testing.T) {
	cfg := lab.Config{Nodes: 1, NoCluster: true}
	lab.Need(t, cfg)
	cfg.Binaries = map[string]string{"vmlockd": program(vmlockd)}
	// One socket for root and for others, whose default would be elsewhere.
	const (
		socket = "/run/test/sock"
		paths  = "socket = \"" + socket + "\"\nrun_dir = \"/run/test/run\"\naudit_log = \"/run/test/audit.log\"\n"
		asRoot = "vmlockd --config "
		// As nobody, who may write where the socket belongs.
		asNobody = "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/tmp vmlockd --config "
	)
	cfg.Files = map[string]string{
		"/etc/cluster.toml": "backend = \"cluster\"\n" + paths,
		"/etc/local.toml":   "backend = \"local\"\n" + paths,
	}
	l := lab.ForTest(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	n := l.Node(1)
	if _, err := n.MustSucceed(ctx, "mkdir", "-m", "1777", "/run/test"); err != nil {
		t.Fatal(err)
	}
	fails := func(what, command string, want ...string) {
		t.Helper()
		res, err := n.Shell(ctx, "timeout 30 "+command+"/etc/cluster.toml")
		if err != nil {
			t.Fatal(err)
		}
		if res.Status != 1 {
			t.Errorf("%s: status %d, want 1: %v", what, res.Status, res)
		}
		for _, w := range want {
			if !strings.Contains(res.Stderr, w) {
				t.Errorf("%s: it does not say %q: %v", what, w, res)
			}
		}
		sock, err := n.Shell(ctx, "ls "+socket)
		if err != nil {
			t.Fatal(err)
		}
		if sock.OK() {
			t.Errorf("%s: the socket is there all the same", what)
		}
	}
	fails("no module", asRoot, "the kernel has no DLM", "modprobe dlm")
	if _, err := n.MustSucceed(ctx, "modprobe", "dlm"); err != nil {
		t.Fatal(err)
	}
	fails("no dlm_controld", asRoot, "dlm_controld is not running", "systemctl start corosync dlm")
	if _, err := n.MustSucceed(ctx, "rm", "-rf", "/run/test/run", "/run/test/audit.log"); err != nil { // root's
		t.Fatal(err)
	}
	fails("no privilege", asNobody, "needs root", "user 65534")

	// With local locks the same user serves at the same place, so nothing else kept
	// him from it.
	res, err := n.Shell(ctx, "timeout 60 "+asNobody+`/etc/local.toml >/run/test/log 2>&1 & p=$!
		while ! [ -S `+socket+` ] && kill -0 $p; do sleep 0.1; done
		kill $p && wait $p; status=$?; cat /run/test/log >&2; exit $status`)
	if err != nil || !res.OK() {
		t.Errorf("the daemon does not serve with local locks either, so the checks before say nothing: %v, %v", res, err)
	}
}
