package cli_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/vmlockd/vmlockd/internal/control"
)

// TestDrainEndedByOthers: who waits for a drain that somebody else has ended is told,
// and does not wait for ever.
func TestDrainEndedByOthers(t *testing.T) {
	left := []control.Holder{{VM: "web", PID: 701, Mode: "exclusive", Resource: "/srv/vm/web.img", Since: at}}
	socket := serveControl(t, func(w http.ResponseWriter, r *http.Request) {
		// Between the two questions it was ended.
		_ = json.NewEncoder(w).Encode(control.Drain{Draining: r.Method == http.MethodPost, Left: left, Waiting: []control.Waiter{}})
	})
	for suffix, args := range map[string][]string{".txt": {"drain", "--wait"}, ".json": {"drain", "--wait", "--json"}} {
		status, out, errs := ctl(socket, args...)
		if status != 1 || (suffix == ".json") != (errs == "") {
			t.Errorf("%q: status %d, stderr %q", args, status, errs)
		}
		golden(t, "drain-ended"+suffix, out+errs)
	}
}

// TestDrainWaitsForSuspended: nothing is held, but a virtual machine lives that would end
// with the host.
func TestDrainWaitsForSuspended(t *testing.T) {
	asked := 0
	socket := serveControl(t, func(w http.ResponseWriter, r *http.Request) {
		d := control.Drain{Draining: true, Left: []control.Holder{}, Waiting: []control.Waiter{}, Returning: []control.Returner{}}
		if asked++; asked < 3 {
			d.Returning = []control.Returner{{VM: "paused", PID: 705, Resource: "/a"}, {VM: "paused", PID: 705, Resource: "/b"}}
		}
		_ = json.NewEncoder(w).Encode(d)
	})
	status, _, errs := ctl(socket, "drain", "--wait")
	if want := "Waiting for what is suspended: paused (pid 705).\n"; status != 0 || errs != want || asked != 3 {
		t.Errorf("status %d, stderr %q, want %q; asked %d times", status, errs, want, asked)
	}
}
