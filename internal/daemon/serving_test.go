package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// served is a built vmlockd that logs to a journald of the test.
type served struct {
	t                         *testing.T
	journal                   *logstest.Journald
	program, dir, socket, url string
	cmd                       *exec.Cmd
}

// freeAddress is an address of loopback that nobody has, at this moment. Its port is
// none that Linux gives out by itself (from 32768 on): a connection to one that nobody
// listens on may be given that very port, and then has itself at its other end.
func freeAddress(t *testing.T) string {
	t.Helper()
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(10_000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal(err)
	return ""
}

func build(t *testing.T) *served {
	t.Helper()
	s := &served{t: t, journal: logstest.New(t), dir: t.TempDir()}
	s.program, s.socket = filepath.Join(s.dir, "vmlockd"), filepath.Join(s.dir, "sock")
	t.Cleanup(s.endHolder)
	address := freeAddress(t)
	s.url = "http://" + address + "/metrics"
	text := fmt.Sprintf("socket = %q\nrun_dir = %q\naudit_log = %q\nlog.format = \"journal\"\nmetrics.listen = %q\n",
		s.socket, filepath.Join(s.dir, "run"), filepath.Join(s.dir, "audit", "audit.log"), address)
	if err := os.WriteFile(filepath.Join(s.dir, "vmlockd.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(buildOnce(t, s.journal.Path))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.program, program, 0o700); err != nil { // a copy, which tests replace
		t.Fatal(err)
	}
	return s
}

// endHolder ends what a daemon that was killed with locks has left: it would live on for
// as long as it holds something.
func (s *served) endHolder() {
	ctx, cancel := context.WithTimeout(context.Background(), logstest.Patience)
	defer cancel()
	c, err := holder.Connect(ctx, holder.Options{Socket: filepath.Join(s.dir, "run", "holder.sock")})
	if err != nil {
		return // there was no daemon
	}
	pid := c.Status().PID
	c.Close()
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func (s *served) start() {
	s.t.Helper()
	s.launch()
	s.event("daemon-ready")
}

// launch starts it, with more arguments, and does not wait until it is ready.
func (s *served) launch(more ...string) {
	s.t.Helper()
	s.cmd = exec.Command(s.program, append([]string{"--config", filepath.Join(s.dir, "vmlockd.toml")}, more...)...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
}

func (s *served) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *served) end(sig syscall.Signal) {
	s.t.Helper()
	s.signal(sig)
	_ = s.cmd.Wait()
}

// event waits for an event and returns its fields.
func (s *served) event(name string) map[string]string {
	s.t.Helper()
	for {
		f := s.journal.Next(s.t)
		if f["VMLOCKD_EVENT"] != name {
			continue
		}
		for _, e := range logs.Events {
			if e.Name == name && f["MESSAGE_ID"] == e.ID {
				return f
			}
		}
		s.t.Fatalf("%s has the id %q", name, f["MESSAGE_ID"])
	}
}

// metrics waits until the address answers.
func (s *served) metrics() map[string]string {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(s.t.Context(), logstest.Patience)
	defer cancel()
	for {
		values, err := get(ctx, s.url)
		if err == nil {
			return values
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("metrics: %v", err)
		}
	}
}

func get(ctx context.Context, url string) (map[string]string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, errors.Join(err, errors.New(resp.Status))
	}
	values := map[string]string{}
	for l := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(l), " ")
		values[name] = value
	}
	return values, nil
}

// shows checks metrics: name and value, name and value, ...
func (s *served) shows(want ...string) {
	s.t.Helper()
	got := s.metrics()
	for i := 0; i < len(want); i += 2 {
		if got[want[i]] != want[i+1] {
			s.t.Errorf("%s is %q, want %s", want[i], got[want[i]], want[i+1])
		}
	}
}

// try asks for a lock in the name of a process.
func (s *served) try(pid int, name, disk string) error {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), logstest.Patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(pid), ID: 1, Name: name}); err != nil {
		s.t.Fatal(err)
	}
	return c.Acquire(ctx, locking.Ref{Name: disk}, 0)
}

func vm(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestMetricsAndEvents: what a whole daemon shows and tells, from its first start
// over an upgrade and a crash to its stop.
func TestMetricsAndEvents(t *testing.T) {
	s := build(t)
	disk := filepath.Join(s.dir, "web.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	web, mail := vm(t), vm(t)
	s.start()
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	f := s.event("lock-granted")
	if f["VMLOCKD_NAME"] != disk || f["VMLOCKD_OWNER"] != "web" || f["VMLOCKD_PID"] != fmt.Sprint(web.Process.Pid) || f["VMLOCKD_MODE"] != "exclusive" || f["PRIORITY"] != "6" {
		t.Errorf("the grant: %v", f)
	}
	if err := s.try(mail.Process.Pid, "mail", disk); err == nil {
		t.Fatal("granted twice")
	}
	if f := s.event("lock-refused"); f["VMLOCKD_OWNER"] != "mail" || !strings.Contains(f["VMLOCKD_REASON"], "web") || f["PRIORITY"] != "4" {
		t.Errorf("the refusal: %v", f)
	}
	held := []string{`vmlockd_locks_held{mode="exclusive"}`, "1", `vmlockd_owners`, "1", `vmlockd_journal_entries`, "1", `vmlockd_holder_up`, "1", `vmlockd_holder_files`, "1",
		`vmlockd_kernel_calls_in_flight`, "0", `vmlockd_scrape_stale{part="kernel"}`, "0"}
	s.shows(append(held, `vmlockd_lock_grants_total{mode="exclusive"}`, "1", `vmlockd_lock_refusals_total{reason="busy_here"}`, "1",
		`vmlockd_starts_total{how="fresh"}`, "1", `vmlockd_starts_total{how="in_place"}`, "0", `vmlockd_connections_limit`, "4096")...)
	info := ""
	for name := range s.metrics() {
		if strings.HasPrefix(name, "vmlockd_build_info{") {
			info = name
		}
	}
	if !strings.Contains(info, `version="v1.2.3"`) || !strings.Contains(info, `backend="local"`) {
		t.Errorf("what runs here: %s", info)
	}

	s.signal(syscall.SIGUSR1)
	if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" {
		t.Errorf("after a restart in place: %v", f)
	}
	s.shows(append(held, `vmlockd_starts_total{how="fresh"}`, "1", `vmlockd_starts_total{how="in_place"}`, "1", `vmlockd_starts_total{how="crash"}`, "0")...)

	s.end(syscall.SIGKILL)
	s.start()
	s.shows(append(held, `vmlockd_locks_restored_total{result="taken_back"}`, "1", `vmlockd_starts_total{how="crash"}`, "1", `vmlockd_starts_total{how="in_place"}`, "1")...)

	_ = web.Process.Kill()
	if f := s.event("owner-gone"); f["VMLOCKD_OWNER"] != "web" || f["VMLOCKD_LOCKS"] != "1" {
		t.Errorf("the owner's death: %v", f)
	}
	if f := s.event("lock-released-gone"); f["VMLOCKD_NAME"] != disk || f["VMLOCKD_HELD"] == "" {
		t.Errorf("the release: %v", f)
	}
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, "0", `vmlockd_owner_deaths_total`, "1", `vmlockd_lock_releases_total{kind="owner_gone"}`, "1")

	s.end(syscall.SIGTERM)
	s.event("daemon-stopped")
	if _, err := get(t.Context(), s.url); err == nil {
		t.Error("metrics are served after the end")
	}
	s.start()
	s.shows(`vmlockd_starts_total{how="fresh"}`, "2", `vmlockd_starts_total{how="crash"}`, "1")
	s.end(syscall.SIGTERM)
}

// TestWithoutPlaces: neither an address that another program has nor an audit log
// that cannot be written keeps the daemon from serving.
func TestWithoutPlaces(t *testing.T) {
	s := build(t)
	l, err := net.Listen("tcp", strings.TrimSuffix(strings.TrimPrefix(s.url, "http://"), "/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(s.dir, "audit"), nil, 0o600); err != nil { // where its directory should be
		t.Fatal(err)
	}
	s.launch()
	seen := map[string]map[string]string{}
	for len(seen) < 3 {
		f := s.journal.Next(t)
		switch e := f["VMLOCKD_EVENT"]; e {
		case "daemon-ready", "metrics-unreachable", "audit-unwritable":
			seen[e] = f
		}
	}
	if f := seen["metrics-unreachable"]; !strings.Contains(f["VMLOCKD_REASON"], "address already in use") || f["VMLOCKD_ADDRESS"] == "" {
		t.Errorf("metrics: %v", f)
	}
	if f := seen["audit-unwritable"]; !strings.Contains(f["VMLOCKD_REASON"], "not a directory") || f["VMLOCKD_FILE"] == "" {
		t.Errorf("the audit log: %v", f)
	}
	disk := filepath.Join(s.dir, "web.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	web := vm(t)
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Error(err)
	}
	l.Close()
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, "1")
	_ = web.Process.Kill()
	s.event("lock-released-gone")
	s.end(syscall.SIGTERM)
}
