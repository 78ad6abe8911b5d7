package peers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// identifies makes a node answer.
func (d *daemon) identifies(f func(ctx context.Context, path string) Disk) {
	d.Peers.mu.Lock()
	defer d.Peers.mu.Unlock()
	d.opts.Identify = f
}

func (d *daemon) which(path string) ([]NodeDisk, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return d.Identify(ctx, path)
}

func TestIdentify(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		defer w.end()
		const path = "/mnt/\xffweb.img"
		full := Disk{Path: path, Type: "nfs4", Scope: "cluster", Name: "nfs:1:2", Resource: "abc", ByPath: true, Doubt: true, Steps: []string{"a", "b"}}
		w.nodes[2].identifies(func(_ context.Context, asked string) Disk {
			if asked != path {
				t.Errorf("asked for %q", asked)
			}
			return full
		})
		w.nodes[3].identifies(func(ctx context.Context, _ string) Disk {
			<-ctx.Done()
			return Disk{Error: "it hangs"}
		})
		// Node 4 is of a version that does not know the question, as far as 1 can tell.
		list, err := w.nodes[1].which(path)
		if err != nil || len(list) != 3 {
			t.Fatalf("%d answers, %v", len(list), err)
		}
		if got := list[0]; got.Err != nil || got.Name != "node2" || fmt.Sprint(got.Disk) != fmt.Sprint(full) {
			t.Errorf("node 2: %+v", got)
		}
		if got := list[1]; got.Err != nil || got.Disk.Error != "it hangs" {
			t.Errorf("node 3: %+v", got)
		}
		if got := list[2]; !errors.Is(got.Err, ErrNoAnswer) {
			t.Errorf("node 4: %+v", got)
		}
	})
}

func TestIdentifyWithoutOthers(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		if list, err := w.nodes[1].which("/a"); err != nil || len(list) != 0 {
			t.Errorf("alone: %v, %v", list, err)
		}
		for _, path := range []string{"", strings.Repeat("x", maxPath+1)} {
			if _, err := w.nodes[1].which(path); err == nil {
				t.Errorf("%.5q is asked for", path)
			}
		}
	})
}

func TestDiskIsCut(t *testing.T) {
	long := strings.Repeat("\xff\"", 1<<16)
	d := Disk{Path: long, Type: long, Scope: long, Name: long, Resource: long, Error: long}
	for range 1000 {
		d.Steps = append(d.Steps, long)
	}
	b, err := encodeDisk(header{kind: kindDisk, flags: flagLast}, d)
	if err != nil || len(b) > MaxMessage {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	_, body, err := decodeHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeDisk(body)
	if err != nil || len(got.Name) != maxDiskName || len(got.Path) != maxPath || len(got.Steps) == 0 {
		t.Fatalf("%d bytes of a name, %d of a path, %d steps, %v", len(got.Name), len(got.Path), len(got.Steps), err)
	}
}

func TestAnAnswerOfAnotherKind(t *testing.T) {
	q := &query{kind: kindDisk, answers: map[corosync.Member]*reply{{Node: 2}: {}}, open: 1, room: maxTotal, done: make(chan struct{})}
	q.lockedPage(corosync.Member{Node: 2}, header{kind: kindAnswer, flags: flagLast}, nil)
	if q.open != 1 {
		t.Error("a list of locks was taken for a disk")
	}
	q.lockedPage(corosync.Member{Node: 2}, header{kind: kindDisk, flags: flagLast}, nil)
	if q.open != 0 {
		t.Error("the answer was not taken")
	}
}

func FuzzDecodeDisk(f *testing.F) {
	f.Add([]byte(`{"path":"L2E=","name":"bGFi","steps":["a"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxMessage {
			return
		}
		var path string
		var d Disk
		var err, errDisk error
		testenv.Bounded(t, 100, len(body), func() {
			path, err = decodeWhich(body)
			d, errDisk = decodeDisk(body)
		})
		if err == nil && (path == "" || len(path) > maxPath) {
			t.Fatalf("a path of %d bytes", len(path))
		}
		if errDisk != nil {
			return
		}
		if len(d.Path) > maxPath || len(d.Name) > maxDiskName || len(d.Steps) > maxSteps || len(d.Resource) > 3*maxResource {
			t.Fatalf("too long: %+v", d)
		}
	})
}
