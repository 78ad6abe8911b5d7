package cli_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmlockd/vmlockd/internal/cli"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

var update = flag.Bool("update", false, "write golden files and man pages anew")

// patience bounds every wait for something that is going to happen.
const patience = time.Minute

// programs is the directory of the built programs.
var programs string

// build makes the programs.
func build(t *testing.T) {
	t.Helper()
	programs = t.TempDir()
	cmd := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=1.2.3-test", "-o", programs+"/", "../../cmd/vmlockd", "../../cmd/vmlockctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v: %s", err, out)
	}
}

// TestScripts runs every command as it is built against a daemon as it is built.
// Each script has a daemon of its own, with the local backend, in its own
// directory; it needs no privilege.
func TestScripts(t *testing.T) {
	build(t)
	root, err := os.MkdirTemp("/tmp", "ctl") // short: the paths of sockets may not be long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: root,
		Setup: func(env *testscript.Env) error {
			work := env.WorkDir
			env.Setenv("PATH", programs+":"+os.Getenv("PATH"))
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			env.Setenv("HOST", name)
			env.Values[key] = &host{dir: work}
			text := fmt.Sprintf("socket = %q\nrun_dir = %q\naudit_log = %q\n[[identity.rule]]\npath = %q\nscope = \"cluster\"\nname = \"images/{rest}\"\n",
				work+"/sock", work+"/run", work+"/audit.log", work+"/ruled/*")
			for _, disk := range []string{"a.img", "b.img"} {
				if err := os.WriteFile(filepath.Join(work, disk), nil, 0o600); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(work, "c.toml"), []byte(text), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":   daemonCommand,
			"cluster":  clusterCommand,
			"ctl":      ctlCommand,
			"examine":  examineCommand,
			"golden":   goldenCommand,
			"held":     heldCommand,
			"hold":     holdCommand,
			"signal":   signalCommand,
			"answer":   answerCommand,
			"asked":    askedCommand,
			"type":     typeCommand,
			"begin":    beginCommand,
			"result":   resultCommand,
			"watching": watchingCommand,
			"running":  runningCommand,
		},
	})
}

type hostKey struct{}

var key hostKey

// host is what a script works with.
type host struct {
	dir    string
	daemon *exec.Cmd
	procs  map[string]*exec.Cmd
	typing map[string]*os.File // terminals of asked, our end of them
	leave  func()              // ends what cluster serves; nil before
}

func hostOf(ts *testscript.TestScript) *host {
	h := ts.Value(key).(*host)
	if h.procs == nil {
		h.procs, h.typing = map[string]*exec.Cmd{}, map[string]*os.File{}
	}
	return h
}

func (h *host) client() *control.Client { return control.NewClient(h.dir + "/run/control.sock") }

// until waits for a condition.
func until(ts *testscript.TestScript, what string, f func() bool) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			ts.Fatalf("waited too long for %s", what)
		}
		<-tick.C // between two looks at the condition
	}
}

// daemonCommand is: daemon start|stop|kill|restart. Restart is in place.
func daemonCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	c := h.client()
	defer c.Close()
	started := func() time.Time {
		st, err := c.Status(context.Background())
		if err != nil {
			return time.Time{}
		}
		return st.Started
	}
	answers := func() bool { return !started().IsZero() }
	switch args[0] {
	case "start":
		log, err := os.OpenFile(h.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		ts.Check(err)
		defer log.Close()
		h.daemon = exec.Command(programs+"/vmlockd", "--config", h.dir+"/c.toml")
		h.daemon.Stdout, h.daemon.Stderr = log, log
		ts.Check(h.daemon.Start())
		d := h.daemon
		ts.Defer(func() {
			for name := range h.procs {
				h.end(name)
			}
			if h.daemon == d {
				_ = d.Process.Signal(syscall.SIGTERM)
				_ = d.Wait()
			}
			h.endHolder()
		})
		until(ts, "the daemon", answers)
	case "stop", "kill":
		sig := syscall.SIGTERM
		if args[0] == "kill" {
			sig = syscall.SIGKILL
		}
		ts.Check(h.daemon.Process.Signal(sig))
		_ = h.daemon.Wait()
		h.daemon = nil
	case "restart":
		before := started()
		ts.Check(h.daemon.Process.Signal(syscall.SIGUSR1))
		until(ts, "the restart", func() bool { now := started(); return !now.IsZero() && !now.Equal(before) })
	default:
		ts.Fatalf("daemon %v", args)
	}
}

// ctlCommand is: ctl STATUS ARGUMENT...
func ctlCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := h.ctl(args[1:])
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = patience
	_ = cmd.Run()
	ts.Check(os.WriteFile(h.dir+"/out", []byte(out.String()), 0o600))
	ts.Check(os.WriteFile(h.dir+"/err", []byte(errs.String()), 0o600))
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("status %d, want %d\nstdout:\n%s\nstderr:\n%s", got, want, out.String(), errs.String())
	}
	// Whatever it ends with its help knows. That of run is its command's.
	if c, _, err := cli.Root().Find(args[1:]); err == nil && c.HasParent() && c.Name() != "run" && c.Parent().Name() != "completion" &&
		!regexp.MustCompile(fmt.Sprintf(`(?m)^  %d  +\S`, want)).MatchString(c.Long) {
		ts.Fatalf("the help of %s does not say what status %d means", c.CommandPath(), want)
	}
}

// examineCommand is: examine ARGUMENT... It runs doctor where something is wrong:
// on a machine that is not set up for libvirt there are faults, elsewhere warnings.
func examineCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	cmd := h.ctl(append([]string{"doctor"}, args...))
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	ts.Check(os.WriteFile(h.dir+"/out", []byte(out.String()), 0o600))
	if got := cmd.ProcessState.ExitCode(); got != 6 && got != 7 || errs.Len() > 0 {
		ts.Fatalf("status %d\n%s%s", got, out.String(), errs.String())
	}
}

func (h *host) ctl(args []string) *exec.Cmd {
	cmd := exec.Command(programs+"/vmlockctl", append([]string{"-f", h.dir + "/c.toml"}, args...)...)
	cmd.Dir = h.dir
	return cmd
}

// normal replaces what differs between two runs.
func (h *host) normal(text string) string {
	name, _ := os.Hostname()
	text = strings.ReplaceAll(text, h.dir, "$WORK")
	for _, r := range []struct{ from, to string }{
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`, "TIME"},
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "UUID"},
		{`"pid":( ?)\d+`, `"pid":${1}PID`},
		{`"(took|held)_seconds":( ?)[0-9.e-]+`, `"${1}_seconds":${2}SECONDS`},
		{`pid \d+`, "pid PID"},
		{`\d+ bytes at \d+ are no record; at \d+:`, "N bytes at N are no record; at N:"},
		{`journal\.damaged-[0-9a-f]+-\d+`, "journal.damaged-BOOT-N"},
		{`\d+( +(?:exclusive|shared) )`, "PID$1"},
		{`by (root|[a-z_][a-z0-9_-]*): `, "by USER: "},
		{`"by": "[^"]*"`, `"by": "USER"`},
		{`(\S) {2,}`, "$1  "},
		{`"node": "` + regexp.QuoteMeta(name) + `"`, `"node": "HOST"`},
		{`(?m)^node  ` + regexp.QuoteMeta(name) + "$", "node  HOST"},
	} {
		text = regexp.MustCompile(r.from).ReplaceAllString(text, r.to)
	}
	return text
}

// goldenCommand is: golden out|err NAME. It compares what the last ctl wrote.
func goldenCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	text, err := os.ReadFile(h.dir + "/" + args[0])
	ts.Check(err)
	got := h.normal(string(text))
	path := filepath.Join("testdata/golden", args[1])
	if *update {
		ts.Check(os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	ts.Check(err)
	if got != string(want) {
		ts.Fatalf("%s is not as in %s; 'go test ./internal/cli -update' writes it anew\ngot:\n%s\nwant:\n%s", args[0], path, got, want)
	}
}

// heldCommand is: held N PATH. It waits until N owners hold it.
func heldCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	c := h.client()
	defer c.Close()
	until(ts, args[0]+" holders of "+args[1], func() bool {
		who, err := c.Who(context.Background(), []string{args[1]}, nil)
		return err == nil && len(who.Holders) == want
	})
}

// nobody is a pid that no process can have (PID_MAX_LIMIT, 2^22).
const nobody = 1 << 23

// holdCommand is: hold NAME exclusive|shared PATH. NAME is a process that is
// started for it and does nothing, or "nobody", which is none. The connection is
// libvirtd's: it ends, and the lock stays.
func holdCommand(ts *testscript.TestScript, neg bool, args []string) {
	h := hostOf(ts)
	pid := nobody
	if args[0] != "nobody" {
		if h.procs[args[0]] == nil {
			h.start(ts, args[0], exec.Command("sleep", "600"))
		}
		pid = h.procs[args[0]].Process.Pid
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, h.dir+"/sock")
	ts.Check(err)
	defer c.Close()
	ts.Check(c.Register(ctx, locking.Owner{PID: int32(pid), ID: 1, Name: args[0], UUID: [16]byte{1, 2, 3}}))
	flags := uint32(0)
	if args[1] == "shared" {
		flags = lockprogram.FlagShared
	}
	if err := c.Acquire(ctx, locking.Ref{Name: args[2]}, flags); (err != nil) != neg {
		ts.Fatalf("acquire %s: %v", args[2], err)
	}
}

func (h *host) start(ts *testscript.TestScript, name string, cmd *exec.Cmd) {
	ts.Check(cmd.Start())
	h.procs[name] = cmd
	ts.Defer(func() { h.end(name) })
}

// endHolder ends what a daemon that stopped with locks has left: it would live on for
// as long as it holds something.
func (h *host) endHolder() {
	socket := h.dir + "/run/holder.sock"
	conn, err := net.Dial("unixpacket", socket)
	if err != nil {
		return // it has ended, and must not be started by Connect
	}
	conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := holder.Connect(ctx, holder.Options{Socket: socket})
	if err != nil {
		return
	}
	pid := c.Status().PID
	c.Close()
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func (h *host) end(name string) {
	if cmd := h.procs[name]; cmd != nil {
		delete(h.procs, name)
		// Not SIGKILL at once: the command that 'vmlockctl run' runs would go on without it.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
	}
}

// beginCommand is: begin NAME ARGUMENT... It runs vmlockctl in the background; its
// output is in NAME.out and NAME.err.
func beginCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	cmd := h.ctl(args[1:])
	out, err := os.Create(h.dir + "/" + args[0] + ".out")
	ts.Check(err)
	defer out.Close()
	errs, err := os.Create(h.dir + "/" + args[0] + ".err")
	ts.Check(err)
	defer errs.Close()
	cmd.Stdout, cmd.Stderr = out, errs
	h.start(ts, args[0], cmd)
}

// resultCommand is: result STATUS NAME. It waits for the end of begin NAME.
func resultCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := h.procs[args[1]]
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	timer.Stop()
	delete(h.procs, args[1])
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	got := ws.ExitStatus()
	if ws.Signaled() {
		got = -int(ws.Signal())
	}
	if got != want {
		text, _ := os.ReadFile(h.dir + "/" + args[1] + ".err")
		ts.Fatalf("%s ended with %d (a signal if negative), want %d: %s", args[1], got, want, text)
	}
}

// signalCommand is: signal SIGNAL NAME|FILE. A file has a pid in it, once it is there.
func signalCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	number, err := strconv.Atoi(args[0])
	ts.Check(err)
	pid := 0
	if cmd := h.procs[args[1]]; cmd != nil {
		pid = cmd.Process.Pid
	} else {
		until(ts, args[1], func() bool {
			text, _ := os.ReadFile(filepath.Join(h.dir, args[1]))
			pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
			return strings.HasSuffix(string(text), "\n") && pid > 1
		})
	}
	ts.Check(syscall.Kill(pid, syscall.Signal(number)))
	if slices.Contains(args[2:], "wait") {
		until(ts, "the end of "+args[1], func() bool { return syscall.Kill(pid, 0) != nil })
	}
}

// watchingCommand is: watching N. It waits until N clients watch.
func watchingCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	c := h.client()
	defer c.Close()
	until(ts, args[0]+" watchers", func() bool {
		st, err := c.Status(context.Background())
		return err == nil && st.Watchers == want
	})
}

// runningCommand is: running VM. It waits until a virtual machine of that name
// holds something.
func runningCommand(ts *testscript.TestScript, _ bool, args []string) {
	c := hostOf(ts).client()
	defer c.Close()
	until(ts, "locks of "+args[0], func() bool {
		h, err := c.Holders(context.Background(), map[string][]string{"vm": {args[0]}})
		return err == nil && len(h.Holders) > 0
	})
}
