package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
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

// judgeJournal finds out whether there may be locks of which the journal does not
// tell, since it is damaged, or is new while something is held. there: the lockspace was in the
// kernel before this start.
func (i *instance) judgeJournal(found *journal.Recovered, there bool) error {
	if found.Fresh {
		if why := i.heldBefore(there); why != "" {
			d, err := i.journal.Suspect(why)
			if err != nil {
				return err
			}
			found.Damage = d
		}
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

// heldBefore says what is there of an earlier daemon of this boot; "" if nothing is.
// With a new journal, as after run_dir was removed or changed, nobody knows what of it is needed.
func (i *instance) heldBefore(there bool) string {
	if there {
		return fmt.Sprintf("this host was in the DLM lockspace %q before vmlockd was started, and there is no journal in %s (was run_dir removed or changed, or does another vmlockd run?)",
			i.cfg.Cluster.Lockspace, i.cfg.RunDir)
	}
	if b, ok := i.backend.(keptFiles); ok {
		if n := len(b.Unexplained()); n > 0 {
			return fmt.Sprintf("%d files were kept locked before vmlockd was started, and there is no journal in %s", n, i.cfg.RunDir)
		}
	}
	return ""
}

// lockspaceIsThere reports whether this host is in the lockspace already.
func lockspaceIsThere(c config.Config) bool {
	if c.Backend != config.BackendCluster {
		return false
	}
	_, err := dlm.Host().Minor(c.Cluster.Lockspace)
	return err == nil
}

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
