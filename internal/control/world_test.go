package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Server whose parts are all fakes.
type world struct {
	t     *testing.T
	s     *Server
	locks *fakeLocks
	drain *fakeDrain
	audit *fakeAudit
	ev    *Events
}

type fakeLocks struct {
	mu        sync.Mutex // guards what follows
	held      []locking.Holder
	waiting   []locking.Waiter
	returning []locking.Returner
	alive     bool
	err       error // of the next ForceRelease, after it has released
	forced    []bool
	lookedAt  int // how often Holders was called
	onLook    func(n int, l *fakeLocks)
}

func (l *fakeLocks) Holders() []locking.Holder {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookedAt++
	if l.onLook != nil {
		l.onLook(l.lookedAt, l)
	}
	return append([]locking.Holder{}, l.held...)
}

func (l *fakeLocks) Waiting() []locking.Waiter     { return l.waiting }
func (l *fakeLocks) Returning() []locking.Returner { return l.returning }

func (l *fakeLocks) ForceRelease(_ context.Context, ref locking.Ref, only func(locking.Holder) bool, force bool) ([]locking.Holder, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forced = append(l.forced, force)
	var gone, left []locking.Holder
	for _, h := range l.held {
		if h.Ref == ref && only(h) {
			gone = append(gone, h)
		} else {
			left = append(left, h)
		}
	}
	if l.alive && !force {
		return nil, &locking.Error{Kind: locking.KindOwnerLives, Ref: ref, Holders: gone}
	}
	l.held = left
	return gone, l.err
}

type fakeDrain struct {
	now *Drained
	err error
}

func (d *fakeDrain) Drained() *Drained { return d.now }

func (d *fakeDrain) Drain(now *Drained) error {
	if d.err == nil {
		d.now = now
	}
	return d.err
}

type fakeAudit struct {
	told  []Action
	err   error
	hangs bool // once an action has been done
}

func (a *fakeAudit) Audit(ctx context.Context, action Action) error {
	a.told = append(a.told, action)
	if a.hangs && action.Outcome != "" {
		<-ctx.Done()
		return ctx.Err()
	}
	return a.err
}

// fakeCluster is a cluster whose answer takes as long as its caller waits if it
// is silent.
type fakeCluster struct {
	c      Cluster
	silent bool
}

func (f *fakeCluster) Cluster(ctx context.Context) Cluster {
	if f.silent {
		<-ctx.Done()
	}
	return f.c
}

// fakePeers are other nodes. A silent one is waited for until the context ends.
type fakePeers struct {
	members []PeerMember
	held    map[uint32][]locking.Holder
	silent  map[uint32]bool
	partly  map[uint32]bool // says what it holds, and that there is more
	listed  int             // how often Holdings was called
	asked   [][]Sought      // for each call of Holders
	names   map[uint32]string
	absent  map[uint32]bool
	disks   map[uint32]fakeDisks
	onAsk   func(p *fakePeers)
}

func (p *fakePeers) Members() []PeerMember    { return p.members }
func (p *fakePeers) Names() map[uint32]string { return p.names }
func (p *fakePeers) Absent(node uint32) bool  { return p.absent[node] }

func (p *fakePeers) Holdings(ctx context.Context) (list []PeerHoldings) {
	p.listed++
	return p.answer(ctx, func(locking.Holder) bool { return true })
}

func (p *fakePeers) Identify(ctx context.Context, path string) (list []PeerDisk) {
	for _, m := range p.members {
		switch {
		case m.Self:
		case p.silent[m.NodeID]:
			<-ctx.Done()
			list = append(list, PeerDisk{NodeID: m.NodeID, Name: m.Name, Err: "no answer in time"})
		default:
			list = append(list, PeerDisk{NodeID: m.NodeID, Name: m.Name, Disk: p.disks[m.NodeID][path]})
		}
	}
	return list
}

// fakeDisks is what paths lead to.
type fakeDisks map[string]Disk

// Identify waits until ctx ends for what is in /hangs.
func (d fakeDisks) Identify(ctx context.Context, path string) Disk {
	if strings.HasPrefix(path, "/hangs/") {
		<-ctx.Done()
	}
	if one, ok := d[path]; ok {
		return one
	}
	return Disk{Path: path, Error: "its server does not answer"}
}

func (p *fakePeers) Holders(ctx context.Context, list []Sought) []PeerHoldings {
	p.asked = append(p.asked, list)
	return p.answer(ctx, func(h locking.Holder) bool {
		return slices.ContainsFunc(list, func(s Sought) bool { return s.ID != "" && s.ID == h.ID || s.ID == "" && s.Ref == h.Ref })
	})
}

func (p *fakePeers) answer(ctx context.Context, keep func(locking.Holder) bool) (list []PeerHoldings) {
	if p.onAsk != nil {
		p.onAsk(p)
	}
	for _, m := range p.members {
		if m.Self {
			continue
		}
		a := PeerHoldings{NodeID: m.NodeID, Name: m.Name}
		if p.silent[m.NodeID] {
			<-ctx.Done()
			a.Err = "no answer in time"
		} else {
			if p.partly[m.NodeID] {
				a.Err = "incomplete"
			}
			for _, h := range p.held[m.NodeID] {
				if keep(h) {
					a.Holders = append(a.Holders, h)
				}
			}
		}
		list = append(list, a)
	}
	return list
}

func newWorld(t *testing.T, change func(*Options)) *world {
	w := &world{t: t, locks: &fakeLocks{}, drain: &fakeDrain{}, audit: &fakeAudit{}, ev: &Events{}}
	o := Options{Version: "1", Backend: "local", Socket: "/run/x", Node: "host", Locks: w.locks, Drain: w.drain, Events: w.ev, Audit: w.audit}
	if change != nil {
		change(&o)
	}
	w.s = New(o)
	return w
}

// inCluster are the options of node 1 of three.
func inCluster(c *fakeCluster, p *fakePeers) func(*Options) {
	return func(o *Options) {
		o.Backend, o.Cluster = "cluster", c
		if p != nil {
			o.Peers = p
		}
	}
}

func threeNodes() (*fakeCluster, *fakePeers) {
	c := &fakeCluster{c: Cluster{Name: "c", NodeID: 1, Quorate: Yes, Fencing: Yes, Lockspace: DLMLockspace{Name: "vmlockd", State: LockspaceRunning}}}
	p := &fakePeers{held: map[uint32][]locking.Holder{}, silent: map[uint32]bool{}}
	for id := uint32(1); id <= 3; id++ {
		c.c.Nodes = append(c.c.Nodes, ClusterNode{NodeID: id, Member: true})
		p.members = append(p.members, PeerMember{NodeID: id, Name: fmt.Sprint("n", id), Version: "1", ConfigDigest: "d", RulesDigest: "r", Self: id == 1})
	}
	return c, p
}

func holder(vm, name string, mode locking.Mode) locking.Holder {
	return locking.Holder{Owner: locking.Owner{PID: 7, Name: vm}, Ref: locking.Ref{Name: name}, Mode: mode, Since: time.Unix(1000, 0)}
}

// do makes a request and returns the status; a body that is no JSON is an error.
func (w *world) do(method, target, body string, out any) int {
	w.t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, rpc.Peer{UID: 0, PID: 1}))
	rec := httptest.NewRecorder()
	w.s.route(rec, r)
	if out == nil {
		out = new(any)
	}
	if rec.Code != http.StatusOK {
		var f Failure
		if err := json.Unmarshal(rec.Body.Bytes(), &f); err != nil || f.Error.Code == "" || f.Error.Message == "" {
			w.t.Fatalf("%s %s: status %d with body %q", method, target, rec.Code, rec.Body)
		}
		if e, ok := out.(*Error); ok {
			*e = f.Error
		}
		return rec.Code
	}
	// The only null there may be says that there is no drain, or no cluster.
	if text := strings.NewReplacer(`"draining":null`, "", `"cluster":null`, "").Replace(rec.Body.String()); strings.Contains(text, ":null") {
		w.t.Errorf("%s %s: there is a null in %s", method, target, text)
	}
	if err := json.Unmarshal(rec.Body.Bytes(), out); err != nil {
		w.t.Fatalf("%s %s: %v in %q", method, target, err, rec.Body)
	}
	return rec.Code
}
