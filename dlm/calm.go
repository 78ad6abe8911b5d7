package dlm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// MembersKernel is what a Kernel may be besides. Host is.
type MembersKernel interface {
	Kernel
	// MembersChanged is when dlm_controld has last told the kernel of a node that joined or left the lockspace. It is
	// the zero time if nobody else is in it. The error is ErrNoLockspace if this node is not in it.
	MembersChanged(lockspace string) (time.Time, error)
}

// MembersChanged reads the time of /sys/kernel/config/dlm/cluster/spaces/<lockspace>/nodes, in which each member has a
// directory (set_configfs_members in dlm_controld/action.c).
func (h host) MembersChanged(lockspace string) (time.Time, error) {
	dir := filepath.Join(h.sys, "kernel/config/dlm/cluster/spaces", lockspace, "nodes")
	nodes, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, ErrNoLockspace
	}
	if err != nil || len(nodes) < 2 {
		return time.Time{}, err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return time.Time{}, err
	}
	return st.ModTime(), nil
}

const (
	// calmFor is how long after a change of the members the other nodes have done with it, if it is over here: they ask the
	// node with the lowest number whether all are, with pauses of up to a second (wait_status_low in fs/dlm/recover.c).
	calmFor = 2 * time.Second
	// calmAtMost is when Remove goes on anyway.
	calmAtMost = 3 * time.Second
	// calmSpare is what is left of the caller's time for leaving itself: whoever ends when that is over must have begun it.
	calmSpare = time.Second
	calmLook  = 50 * time.Millisecond
)

// calm waits until the other members recover from nothing, as far as can be told from here. It is bounded also where the
// kernel does not answer.
func calm(ctx context.Context, k Kernel, name string) {
	mk, ok := k.(MembersKernel)
	if !ok {
		return
	}
	end := time.Now().Add(calmAtMost)
	if d, ok := ctx.Deadline(); ok && d.Add(-calmSpare).Before(end) {
		end = d.Add(-calmSpare)
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	_, _ = detached(ctx, func() (struct{}, error) {
		untilCalm(ctx, mk, name)
		return struct{}{}, nil
	}, nil)
}

func untilCalm(ctx context.Context, k MembersKernel, name string) {
	runs := func() bool { return true }
	if state, err := OpenState(k, name); err == nil {
		defer state.Close()
		runs = func() bool {
			running, err := state.Running()
			return running || err != nil
		}
	}
	for {
		changed, err := k.MembersChanged(name)
		if err != nil || changed.IsZero() || runs() && time.Since(changed) >= calmFor {
			return
		}
		select {
		case <-time.After(calmLook):
		case <-ctx.Done():
			return
		}
	}
}
