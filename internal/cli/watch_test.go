package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/cli"
	"github.com/vmlockd/vmlockd/internal/control"
)

// serveControl serves a control socket that answers as a test likes.
func serveControl(t *testing.T, h http.HandlerFunc) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ctl") // short: the paths of sockets may not be long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return socket
}

// ctl runs vmlockctl in this process.
func ctl(socket string, args ...string) (status int, out, errs string) {
	var o, e bytes.Buffer
	status = cli.Main(append([]string{"--socket", socket}, args...), "1.2.3-test", cli.Streams{In: strings.NewReader(""), Out: &o, Err: &e})
	return status, o.String(), e.String()
}

// TestWatchComesBack: a watch that was cut off shows each event once, and says that
// vmlockd was restarted only if it was.
func TestWatchComesBack(t *testing.T) {
	var asked []string
	socket := serveControl(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		asked = append(asked, fmt.Sprintf("since=%s started=%s", q.Get("since"), q.Get("started")))
		started, since := "one", uint64(10)
		switch len(asked) {
		case 2:
			since = 14
		case 3:
			started, since = "two", 0
		}
		w.Header().Set("Vmlockd-Started", started)
		w.Header().Set("Vmlockd-Since", fmt.Sprint(since))
		lines := json.NewEncoder(w)
		if len(asked) == 1 {
			_ = lines.Encode(control.Line{Missed: 2})
			since += 2
		}
		for i := range uint64(2) { // and then it is cut off
			_ = lines.Encode(control.Line{Event: &control.Event{Seq: since + i + 1, Time: time.Unix(0, 0), Kind: "granted", VM: started, Resource: "/a"}})
		}
	})
	status, out, errs := ctl(socket, "watch", "-n", "6")
	if status != 0 || strings.Count(out, "\n") != 7 || strings.Count(out, "one") != 4 || strings.Count(out, "two") != 2 {
		t.Errorf("status %d:\n%s%s", status, out, errs)
	}
	if got, want := strings.Join(asked, "; "), "since= started=; since=14 started=one; since=16 started=one"; got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}
	if strings.Count(errs, "connection was lost") != 1 || strings.Count(errs, "was restarted") != 1 {
		t.Errorf("said %q", errs)
	}
}
