package daemon

import "context"

// awaitEndings is for before this program ends or is replaced: owners that closed their
// connection while they hold locks are ended, and the next program, which never had that
// connection, would not send them SIGKILL. It takes locking.EndPatience for each, and
// stopTimeout for all, at the longest: an owner that the kernel does not let end keeps
// nothing else waiting. Everybody is served meanwhile who was before.
//
// One that begins to be ended later than this is waited for by locking.Manager.Close.
func (i *instance) awaitEndings(ctx context.Context) {
	n := i.locks.Endings()
	if n == 0 {
		return
	}
	i.waiting.Store("owners that are being ended")
	i.log.Info("waiting for owners that are being ended, which takes a moment", "owners", n)
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if left := i.locks.AwaitEndings(ctx); left > 0 {
		i.log.Warn("going on although owners that are being ended are still there: they keep their locks until the kernel lets them end", "owners", left)
	}
}
