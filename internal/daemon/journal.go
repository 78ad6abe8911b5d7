package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// openJournal opens the journal of this backend: what another one holds cannot
// be taken back by this one.
func (i *instance) openJournal(boot string) (journal.Recovered, error) {
	dir := filepath.Join(i.cfg.RunDir, journalDir(i.cfg))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return journal.Recovered{}, err
	}
	j, found, err := journal.Open(dir, boot)
	if err != nil {
		return journal.Recovered{}, err
	}
	i.journal = j
	return found, nil
}

// openGifts opens what belongs to it, and returns what virtual machines had given back before this start. A daemon that
// cannot read it serves all the same: it is about locks that nobody has.
func (i *instance) openGifts(boot string) (before []locking.Kept) {
	var err error
	if i.gifts, before, err = journal.OpenGifts(filepath.Join(i.cfg.RunDir, journalDir(i.cfg)), boot); err != nil {
		i.log.Warn("not all can be read that virtual machines had given back before this start: what libvirt has forgotten of that is not taken again", "reason", err)
	}
	return before
}

// keptGifts is that, and says what cannot be written there.
func (i *instance) keptGifts() locking.GiftJournal {
	return &toldGifts{GiftJournal: i.gifts, dir: filepath.Join(i.cfg.RunDir, journalDir(i.cfg)), log: i.log}
}

// A journal that is new explains nothing. Whether there is something to explain is found out once for each journal;
// until that is written down the next start asks again, wherever this one ends.

// judgeLockspace finds that out with backend "cluster", before this host joins: in no lockspace it holds
// no lock. A start that fails after that leaves its own lockspace to the next one, and no doubt.
func (i *instance) judgeLockspace(found *journal.Recovered) error {
	if i.cfg.Backend != config.BackendCluster {
		return nil
	}
	why := ""
	if found.Fresh && lockspaceIsThere(i.cfg.Cluster.Lockspace) {
		why = fmt.Sprintf("this host was in the DLM lockspace %q before vmlockd was started, and there is no journal in %s (was run_dir removed or changed, or does another vmlockd run?)",
			i.cfg.Cluster.Lockspace, i.cfg.RunDir)
	}
	return i.judge(found, why)
}

// judge writes down why a new journal does not explain all that is held; "" if nothing was held before it.
func (i *instance) judge(found *journal.Recovered, why string) error {
	if !found.Fresh {
		return nil
	}
	if why == "" {
		if err := i.journal.Settled(); err != nil {
			return err
		}
	} else {
		d, err := i.journal.Suspect(why)
		if err != nil {
			return err
		}
		found.Damage = d
	}
	found.Fresh = false
	return nil
}

// judgeJournal finds out whether there may be locks of which the journal does not
// tell, since it is damaged, or is new while something is held.
func (i *instance) judgeJournal(found *journal.Recovered) error {
	why := ""
	if found.Fresh {
		why = i.keptBefore()
	}
	if err := i.judge(found, why); err != nil {
		return err
	}
	d := found.Damage
	switch {
	case d == nil:
	case d.Unknown:
		if b, ok := i.backend.(keptFiles); ok {
			b.Distrust()
		}
		i.log.Error("the journal was damaged; what it may have said stays locked until 'vmlockctl settle' gives it back, or until this host is rebooted", "event", "journal-damaged", "damage", d)
	case len(d.Notes) > 0:
		i.log.Warn("the journal was damaged in a part that it has twice; nothing is missing", "event", "journal-header-damaged", "damage", d)
	default:
		// A kill cuts a write(2) short where it comes to the next page (generic_perform_write in mm/filemap.c).
		i.log.Info("the journal had what a kill or an earlier boot had left; nothing is missing", "event", "journal-mended", "damage", d)
	}
	return nil
}

// keptBefore says what an earlier daemon of this boot has left with backend "local"; "" if that is nothing.
// With a new journal, as after run_dir was removed or changed, nobody knows what of it is needed.
func (i *instance) keptBefore() string {
	if b, ok := i.backend.(keptFiles); ok {
		if n := len(b.Unexplained()); n > 0 {
			return fmt.Sprintf("%d files were kept locked before vmlockd was started, and there is no journal in %s", n, i.cfg.RunDir)
		}
	}
	return ""
}

// lockspaceIsThere reports whether this host may be in the lockspace already.
func lockspaceIsThere(lockspace string) bool {
	_, err := minorOf(lockspace)
	return !errors.Is(err, dlm.ErrNoLockspace) // a kernel that does not tell may have it
}

// minorOf is replaced by tests.
var minorOf = dlm.Host().Minor

// noOtherLocks is nil if nothing is held in another backend or lockspace, as far as run_dir
// tells. What is held there this daemon would grant to others.
func noOtherLocks(c config.Config, boot string) error {
	mine := journalDir(c)
	dirs, err := filepath.Glob(filepath.Join(c.RunDir, journalPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		if name == mine {
			continue
		}
		backend, lockspace, _ := strings.Cut(strings.TrimPrefix(name, journalPrefix), "-")
		was := fmt.Sprintf("backend = %q", backend)
		if lockspace != "" {
			was += fmt.Sprintf(" and cluster.lockspace = %q", lockspace)
		}
		n, err := journal.Live(dir, boot)
		switch {
		case err != nil:
			return fmt.Errorf("it cannot be seen whether this host holds locks with %s, which it was configured with before: %w. If it holds none, remove that directory", was, err)
		case n > 0:
			return fmt.Errorf("this host holds %d locks with %s, as the journal in %s says: with the configuration of now, others would get their disks. "+
				"Start vmlockd with that configuration, wait until nothing is held (vmlockctl drain --wait), and change it then", n, was, dir)
		}
	}
	return nil
}
