package identity_test

import (
	"errors"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/lab"
)

// It needs no lab: what a host says that does not hear of the holder's name in time is no fault, and asked again.
func TestRefusedFor(t *testing.T) {
	const disk = "/srv/disk.img"
	refusal := func(by ...locking.RemoteHolder) string {
		return (&locking.Error{Kind: locking.KindBusy, Ref: locking.Ref{Name: disk}, Remote: by, Err: errors.New("held on another host of the cluster")}).Error()
	}
	by := func(name string) locking.RemoteHolder {
		return locking.RemoteHolder{Holder: locking.Holder{Owner: locking.Owner{PID: 7, Name: name}}, Node: 1}
	}
	said := []string{refusal(), refusal(by("")), refusal(by("web"))} // by nobody, by the lock itself, and by the host that has it
	asked := 0
	s := &suite{ctx: t.Context()}
	s.refusedFor(t, "a lock", disk, "web", func() (lab.Result, error) {
		asked++
		return lab.Result{Status: 1, Stderr: "error: resource busy: " + said[min(asked, len(said))-1]}, nil
	})
	if asked != len(said) {
		t.Errorf("asked %d times", asked)
	}
}
