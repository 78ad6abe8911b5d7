package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// allowed says who may use libvirt's socket: root, or, if that is of a user's session, this
// user and nobody else, as with virtlockd.
func allowed(euid int) func(rpc.Peer) bool {
	if euid == 0 {
		return nil // the rule of the server
	}
	return func(p rpc.Peer) bool { return int64(p.UID) == int64(euid) }
}

// serve returns when ctx ends or serving does.
func (i *instance) serve(ctx context.Context, restart <-chan os.Signal) (again bool, err error) {
	if ctx.Err() != nil { // a restart that was asked for as well is not wanted any more
		return false, nil
	}
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case <-restart:
			return true, nil
		case <-i.beat.asks():
		case <-i.idle.retired:
			return false, nil
		case err := <-i.failed:
			if errors.Is(err, rpc.ErrServerClosed) && i.idle.end() {
				return false, nil
			}
			return false, fmt.Errorf("serve %s: %w", i.cfg.Socket, err)
		}
	}
}
