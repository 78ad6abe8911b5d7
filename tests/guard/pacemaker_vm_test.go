package guard_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestPacemakerVirtualDomain has real Pacemaker run a virtual machine of stock libvirt with ocf:heartbeat:VirtualDomain on top of dlm_controld
// and vmlockd, with the lines for crm of docs/fencing.md: it is started, moved live, stopped together with the locks below it, and taken over
// from a host without power: once that counts as reset, or, without fencing, once the hold-off is over.
func TestPacemakerVirtualDomain(t *testing.T) {
	t.Run("Fencing", func(t *testing.T) {
		r := startDomain(t, setup{nodes: 3, grace: 10 * time.Second, holdOff: 45 * time.Second, libvirt: true}, map[string]string{"/etc/default/sbd": sbdDefaults(t)})
		r.pacemaker(true)
		r.sh(1, domainCommands(t, pageReset, slowReset))
		r.awaitMode("fencing")
		r.awaitWeb(3, 3*time.Minute)
		r.refusedElsewhere(1)
		r.moves()
		r.stopsInOrder()
		r.takenOver(stonithTimeout)
	})
	t.Run("HoldOff", func(t *testing.T) {
		r := startDomain(t, setup{nodes: 3, grace: 10 * time.Second, holdOff: 45 * time.Second, libvirt: true}, map[string]string{
			"/etc/default/sbd":  "",
			"/etc/dlm/dlm.conf": "post_join_delay=3\nenable_fencing=0\n",
		})
		r.pacemaker(false)
		r.sh(1, domainCommands(t, withoutFencing(t)...))
		r.awaitMode("freeze")
		r.awaitWeb(3, 3*time.Minute)
		r.awaitPromise()
		r.takenOver(r.holdOff)
	})
}

// stonithTimeout is that of slowReset.
const stonithTimeout = 30 * time.Second

// domain is a run with the virtual machine "web".
type domain struct{ *run }

func startDomain(t *testing.T, c setup, files map[string]string) domain {
	t.Helper()
	web := lab.Domain{Name: "web", UUID: "6c6f636b-0000-4000-9000-000000000001", Disks: []lab.Disk{{Path: lab.SharedDir + "/run1/web.img"}}}
	files[webXML] = web.XML()
	s := startPacemaker(t, c, "crm", lab.Config{MemoryMB: 900, LockDaemon: lab.LaterLockDaemon, Files: files})
	r := domain{s.prepare(t)}
	r.must(os.WriteFile(filepath.Join(r.dir, "web.img"), lab.CountingGuest(), 0o600))
	for _, n := range r.Nodes() {
		r.must(n.WaitLibvirt(r.ctx))
	}
	r.watch()
	return r
}

// webXML is the configuration of web, where the page has it.
const webXML = "/etc/libvirt/qemu/web.xml"

// withoutFencing are pairs for replaced: the lines for clusters with fencing, and those that the page has in their place for others.
func withoutFencing(t *testing.T) []string {
	lines := strings.SplitAfter(fencingPage(t, "these lines are others:"), "\n")
	if len(lines) != 3 {
		t.Fatalf("docs/fencing.md has %q for clusters without fencing", lines)
	}
	return []string{
		"primitive dlm ocf:pacemaker:controld \\\n", lines[0],
		"property stonith-enabled=true no-quorum-policy=freeze stonith-watchdog-timeout=15s\n", lines[1],
	}
}

// domainCommands are the lines of the page for crm with a virtual machine that is wanted on node 3. The lab's nodes have no ssh, no storage
// that libvirt knows to be shared, and guests that do not listen when they are to shut down.
func domainCommands(t *testing.T, pairs ...string) string {
	page := replaced(t, fencingPage(t, "With crm:"), append(pairs, "systemd:vmlockd", "ocf:vmlockd:vmlockd",
		"migration_transport=ssh", "migration_transport=tcp migrate_options=--unsafe", "op stop timeout=180s", "op stop timeout=40s")...)
	return "crm configure <<'END'\n" + page + "location first web 100: node3\nlocation second web 50: node1\ncommit\nquit\nEND\n"
}

// counter is what web has counted on its disk.
func (r domain) counter() uint32 {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "web.img"))
	r.must(err)
	return lab.Counter(b)
}

// watch looks all the time whether web's counter goes back, as it does when two count: each writes what it has counted itself.
func (r domain) watch() {
	ctx, cancel := context.WithCancel(r.ctx)
	var wg sync.WaitGroup
	r.t.Cleanup(func() { cancel(); wg.Wait() })
	path := filepath.Join(r.dir, "web.img")
	wg.Go(func() {
		if err := watchCounter(ctx, path); err != nil {
			r.t.Error(err)
		}
	})
}

// watchCounter returns an error when the counter of an image goes back, and nil when the context ends.
func watchCounter(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	ticker := time.NewTicker(5 * time.Millisecond) // the guest counts every 55 ms
	defer ticker.Stop()
	var last uint32
	b := make([]byte, lab.CounterOffset+4)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if _, err := f.ReadAt(b, 0); err != nil {
			return err
		}
		now := lab.Counter(b)
		if now < last {
			return fmt.Errorf("OVERLAP: the counter of %s has gone back from %d to %d: two virtual machines write", path, last, now)
		}
		last = now
	}
}

// The judge of TestPacemakerVirtualDomain can find an overlap.
func TestCounterThatGoesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.img")
	if err := os.WriteFile(path, lab.CountingGuest(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(n byte) {
		if _, err := f.WriteAt([]byte{n}, lab.CounterOffset); err != nil {
			t.Fatal(err)
		}
	}
	write(7)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found := make(chan error, 1)
	go func() { found <- watchCounter(ctx, path) }()
	for n := byte(0); ; n ^= 1 {
		write(8 - n)
		select {
		case err := <-found:
			if err == nil || !strings.Contains(err.Error(), "OVERLAP") {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

// awaitWeb waits until web runs on a node, which has its lock, and counts.
func (r domain) awaitWeb(node int, most time.Duration) {
	r.t.Helper()
	n := r.Node(node)
	r.await("web to run on "+n.Name(), most, func() bool {
		state, err := n.DomainState(r.ctx, "web")
		r.must(err)
		return state == "running"
	})
	before := r.counter()
	r.await("web to count on", time.Minute, func() bool { return r.counter() > before+enough })
	if st := r.status(node); st == nil || st.Counts.Locks != 1 {
		r.t.Errorf("vmlockd of %s does not have web's lock: %s", n.Name(), text(st))
	}
}

// refusedElsewhere starts another virtual machine with web's disk behind Pacemaker's back.
func (r domain) refusedElsewhere(node int) {
	r.t.Helper()
	res, err := r.Node(node).Create(r.ctx, lab.Domain{Name: "other", Disks: []lab.Disk{{Path: lab.SharedDir + "/run1/web.img"}}})
	r.must(err)
	if res.OK() || !strings.Contains(res.Stderr, "is locked") {
		r.t.Fatalf("web's disk, which is in use, on node %d: %v", node, res)
	}
	r.step("another virtual machine with web's disk: %s", strings.TrimSpace(res.Stderr))
}

// moves has Pacemaker move web to node 2 and back, live.
func (r domain) moves() {
	r.t.Helper()
	for _, to := range []int{2, 3} {
		r.sh(1, fmt.Sprintf("crm_resource --resource web --move --node node%d", to))
		r.awaitWeb(to, 3*time.Minute)
		other := 5 - to
		r.await(fmt.Sprintf("Pacemaker to have moved web live to node %d", to), time.Minute, func() bool {
			log := r.pacemakerLog(to)
			return strings.Contains(log, "Result of migrate_from operation for web on node"+fmt.Sprint(to)+": ok")
		})
		state, err := r.Node(other).DomainState(r.ctx, "web")
		r.must(err)
		if state != "" && state != "shut off" {
			r.t.Errorf("web is %s on node %d, which it has left", state, other)
		}
	}
	r.sh(1, "crm_resource --resource web --clear")
	r.unfailed("after the moves")
}

func (r domain) pacemakerLog(node int) string {
	r.t.Helper()
	b, err := r.Node(node).Log(r.ctx, "pacemaker")
	r.must(err)
	return string(b)
}

// stopsInOrder stops the locks on all nodes, before which web has to be stopped, and starts them again.
func (r domain) stopsInOrder() {
	r.t.Helper()
	from := len(r.pacemakerLog(3))
	r.sh(1, "crm_resource --resource locks-all --meta --set-parameter target-role --parameter-value Stopped")
	for _, n := range r.Nodes() {
		r.await("dlm_controld of "+n.Name()+" to have ended", 3*time.Minute, func() bool {
			res, err := n.Exec(r.ctx, "pgrep", "-x", "dlm_controld")
			r.must(err)
			return !res.OK()
		})
	}
	// Pacemaker says so a little later than dlm_controld has ended.
	r.await("Pacemaker to have stopped dlm on node 3", time.Minute, func() bool {
		return strings.Contains(r.pacemakerLog(3)[from:], "Result of stop operation for dlm on node3: ok")
	})
	log, last := r.pacemakerLog(3)[from:], -1
	for _, what := range []string{"web", "vmlockd", "dlm"} {
		at := strings.LastIndex(log, "Result of stop operation for "+what+" on node3: ok")
		if at <= last {
			r.t.Errorf("node 3 has not stopped web, vmlockd and dlm in this order:\n%s", strings.Join(stopped.FindAllString(log, -1), "\n"))
		}
		last = at
	}
	still := r.counter()
	r.sh(1, "crm_resource --resource locks-all --meta --delete-parameter target-role")
	r.awaitWeb(3, 4*time.Minute)
	if now := r.counter(); now <= still {
		r.t.Errorf("web has counted to %d, and had to %d before", now, still)
	}
	r.unfailed("after a stop of the locks, and a start")
}

// takenOver cuts the power of node 3, and sees web on another node, not sooner than that.
func (r domain) takenOver(soonest time.Duration) {
	r.t.Helper()
	r.must(r.loser().PowerCut(r.ctx))
	cut, still := time.Now(), r.counter()
	r.step("node 3 has no power any more")
	r.await("web to run on node 1 or 2, and to count", r.takeOver()+3*time.Minute, func() bool { return r.counter() > still+enough })
	took := time.Since(cut).Round(time.Second)
	r.step("web counts again %v after the power cut; of its starts and stops Pacemaker said\n%s", took, strings.Join(r.resultsOfWeb(), "\n"))
	if took < soonest {
		r.t.Errorf("web counts again %v after the power cut, and was not to for %v", took, soonest)
	}
}

var stopped = regexp.MustCompile(`(?m)^.*Result of stop operation for .*$`)

var results = regexp.MustCompile(`(?m)^.*Result of (start|stop) operation for web .*$`)

// resultsOfWeb is what the logs of nodes 1 and 2 have of web.
func (r domain) resultsOfWeb() (lines []string) {
	r.t.Helper()
	for _, id := range r.others() {
		lines = append(lines, results.FindAllString(r.pacemakerLog(id), -1)...)
	}
	slices.Sort(lines) // by their times
	return lines
}
