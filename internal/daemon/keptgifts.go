package daemon

import (
	"log/slog"
	"sync/atomic"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// toldGifts is a locking.GiftJournal that says in the log what it could not keep: no release fails for that, so nobody else would. It says so
// once, however many there are, and once more when it works again.
type toldGifts struct {
	locking.GiftJournal
	dir string // where they are kept
	log *slog.Logger

	missed atomic.Int64 // how many were not kept since it last worked
}

// Add implements locking.GiftJournal.
func (g *toldGifts) Add(k locking.Kept) (uint64, error) {
	seq, err := g.GiftJournal.Add(k)
	switch {
	case err != nil:
		if g.missed.Add(1) == 1 {
			g.log.Warn("what virtual machines give back cannot be written down, and the next start of vmlockd does not know of it: a lock that libvirt forgets, as it does when a migration is aborted, is not taken again after that start. "+
				"No lock is lost by it. Make room where run_dir is (df), or see what else is wrong there", "event", "given-back-not-kept", "directory", g.dir, "reason", err)
		}
	case g.missed.Load() > 0: // which is so hardly ever, and this is called often
		if n := g.missed.Swap(0); n > 0 {
			g.log.Info("what virtual machines give back is written down again; what they gave back meanwhile is not, until they take it and give it back once more", "not_kept", n)
		}
	}
	return seq, err
}
