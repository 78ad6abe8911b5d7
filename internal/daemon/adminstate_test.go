package daemon

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/adminprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// TestLimitsAcrossRestart: what virt-admin has set stays, unless the configuration was
// changed, and nothing that cannot be a limit is one.
func TestLimitsAcrossRestart(t *testing.T) {
	for _, k := range []struct {
		set        limits
		configured int
		clients    int
		unauth     uint32
	}{
		{limits{}, 200, 200, 200}, // a first start, or an earlier version
		{limits{Configured: 200, Clients: 50, Unauth: 5}, 200, 50, 5},
		{limits{Configured: 200, Clients: 50, Unauth: 0}, 200, 50, 0},
		{limits{Configured: 200, Clients: 50, Unauth: 5}, 300, 300, 300},
		{limits{Configured: 200, Clients: 0}, 200, 200, 0},
		{limits{Configured: 200, Clients: 1 << 40}, 200, adminprogram.MaxMaxClients, 0},
	} {
		if c, u := k.set.clients(k.configured), k.set.unauth(k.configured); c != k.clients || u != k.unauth {
			t.Errorf("%+v with %d configured: %d and %d", k.set, k.configured, c, u)
		}
	}
	var none *adminState
	if none.limits(lockServerName) != (limits{}) || none.lastID() != 0 || none.connections() != nil || none.fds() != nil || none.inherit(nil) != nil {
		t.Error("there is something in the state of a first start")
	}
	none.close()
}

// TestAdminState: the next program gets what this one leaves.
func TestAdminState(t *testing.T) {
	file := func(name string) *os.File { return os.NewFile(uintptr(give(t)), name) }
	since := time.Unix(1234, 5678).UTC()
	s := &adminState{
		Socket: "/admin-sock", LastID: 9, Limits: map[string]limits{lockServerName: {Configured: 3, Clients: 2, Unauth: 1}},
		listener: file("listener"),
		handovers: []*rpc.Handover{{ID: 7, Since: since, Peer: rpc.Peer{PID: 70}, File: file("connection"), Pending: []byte("x"),
			Sessions: []rpc.SessionState{{Program: adminprogram.ProgramNumber, Version: adminprogram.Version}}}},
	}
	defer s.close()
	fds := s.fds()
	if again := s.fds(); len(fds) != 2 || !reflect.DeepEqual(fds, again) || len(s.Connections) != 1 {
		t.Fatalf("%v, and then %v", fds, again)
	}
	text, err := json.Marshal(&state{VirtAdmin: s})
	if err != nil {
		t.Fatal(err)
	}
	var got state
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := got.VirtAdmin.inherit(func(fd int, name string) (*os.File, error) {
		names = append(names, name)
		if !reflect.DeepEqual(fds[len(names)-1], fd) {
			t.Errorf("%s is %d, of %v", name, fd, fds)
		}
		return file(name), nil
	}); err != nil {
		t.Fatal(err)
	}
	defer got.VirtAdmin.close()
	if strings.Join(names, " ") != "/admin-sock connection" {
		t.Errorf("%v", names)
	}
	h := got.adminState().connections()
	if len(h) != 1 || h[0].ID != 7 || !h[0].Since.Equal(since) || h[0].Peer.PID != 70 || string(h[0].Pending) != "x" || len(h[0].Sessions) != 1 || got.VirtAdmin.lastID() != 9 {
		t.Errorf("%+v", h)
	}
	if got.VirtAdmin.limits(lockServerName) != s.Limits[lockServerName] {
		t.Errorf("%+v", got.VirtAdmin.Limits)
	}
	// A state of a version that knows nothing of it.
	text, err = json.Marshal(&state{})
	if err != nil || strings.Contains(string(text), "VirtAdmin") {
		t.Errorf("%s, %v", text, err)
	}
}
