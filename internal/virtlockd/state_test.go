package virtlockd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// captured was written by virtlockd 9.0.0 of Debian 12.
func captured(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("testdata/state.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const capturedPID = 23179

func TestParse(t *testing.T) {
	got, err := Parse([]byte(captured(t)), capturedPID)
	if err != nil {
		t.Fatal(err)
	}
	uuid := [16]byte{1, 2, 3}
	want := &State{
		Listener: 5, Admin: 6,
		Clients: []Client{
			{FD: 11, Restricted: true, Owner: locking.Owner{PID: 23220, ID: 7, Name: "own\"é", UUID: uuid}},
			{FD: 12, Owner: locking.Owner{PID: 23220, ID: 7, Name: "own", UUID: uuid}},
		},
		Lockspaces: []string{"/srv/spaces"},
		Locks: []Lock{
			{Ref: locking.Ref{Name: "/srv/b.img"}, FD: 14, Owners: []int32{23220}},
			{Ref: locking.Ref{Name: "/srv/a.img"}, FD: 13, Owners: []int32{23220}},
			{Ref: locking.Ref{Name: "/srv/shared.img"}, FD: 15, Mode: locking.Shared, Owners: []int32{23220, 23220}},
			{Ref: locking.Ref{Lockspace: "/srv/spaces", Name: "0123abc"}, FD: 16, Autocreate: true, Owners: []int32{23220}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]int32{23220}, got.Pids()); diff != "" {
		t.Errorf("pids: %s", diff)
	}
	if o := got.OwnerOf(23220); o.Name != "own\"é" || got.OwnerOf(7) != (locking.Owner{PID: 7}) {
		t.Errorf("owners: %+v, %+v", o, got.OwnerOf(7))
	}
	if _, err := Parse([]byte(captured(t)), capturedPID+1); !errors.Is(err, ErrNone) {
		t.Errorf("for another process: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	text := captured(t)
	for _, c := range []struct{ old, new, want string }{
		{text, "", "JSON"},
		{text, "{", "JSON"},
		{`"fd": 13,`, ``, "no descriptor for the lock"},
		{`"fd": 13,`, `"fd": -1,`, "no descriptor for the lock"},
		{`"fd": 13,`, `"fd": 14,`, "descriptor 14 for"},
		{`"fd": 13,`, `"fd": "13",`, "string"},
		{`"fd": 5,`, `"fd": 12,`, "descriptor 12 for"},
		{`"virtlockd": {`, `"other": {`, "no socket for libvirt"},
		{`"ownerPid": 23220,`, ``, "has no pid"},
		{`"ownerPid": 23220,`, `"ownerPid": 99999999999,`, "has no pid"},
		{`"ownerName": "own",`, ``, "no name"},
		{`"01020300-0000-0000-0000-000000000000"`, `"0102"`, "no UUID"},
		{`"name": "/srv/a.img"`, `"name": ""`, "empty"},
		{`"flags": 2`, `"flags": 4`, "flags are 0x4"},
		{`"flags": 1`, `"flags": 0`, "2 owners"},
		{"\"owners\": [\n            23220\n          ]", `"owners": []`, "no owner"},
		{"\"owners\": [\n            23220\n          ]", `"owners": [4294967296]`, "process 4294967296"},
		{`"directory": "/srv/spaces"`, `"directory": ""`, "without a directory"},
	} {
		if !strings.Contains(text, c.old) {
			t.Fatalf("%q is not in the text", c.old)
		}
		_, err := Parse([]byte(strings.Replace(text, c.old, c.new, 1)), capturedPID)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q instead of %.40q: %v, want %q", c.new, c.old, err, c.want)
		}
	}
}

// TestRead: only a file that nobody else can have written is believed.
func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if _, err := Read(path, capturedPID); !errors.Is(err, ErrNone) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(captured(t)), 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := Read(path, capturedPID); err != nil || len(s.Locks) != 4 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := os.Chmod(path, 0o722); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, capturedPID); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("a file that others can write: %v", err)
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(link, capturedPID); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("a link: %v", err)
	}
}

func TestStatePath(t *testing.T) {
	if p := StatePath("/run", true); p != "/run/virtlockd-restart-exec.json" {
		t.Error(p)
	}
	if p := StatePath("/run/user/7", false); p != "/run/user/7/libvirt/virtlockd-restart-exec.json" {
		t.Error(p)
	}
}

// FuzzParse: no text makes trouble, and what is read has each descriptor once.
func FuzzParse(f *testing.F) {
	f.Add([]byte(captured(f)))
	f.Add([]byte(`{"magic":"23179"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s *State
		var err error
		testenv.Bounded(t, 1000, len(text), func() { s, err = Parse(text, capturedPID) })
		if err != nil {
			return
		}
		seen := map[int]bool{}
		once := func(fd int) {
			if fd < 0 || seen[fd] {
				t.Fatalf("descriptor %d", fd)
			}
			seen[fd] = true
		}
		once(s.Listener)
		if s.Admin >= 0 {
			once(s.Admin)
		}
		for _, c := range s.Clients {
			once(c.FD)
		}
		for _, l := range s.Locks {
			once(l.FD)
			if len(l.Owners) == 0 || l.Ref.Name == "" {
				t.Fatalf("%+v", l)
			}
		}
	})
}
