package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// checks is how often Check reads, as the journal's user writes meanwhile.
const checks = 3

// Check reports whether Open, in a program that takes the place of the one that has
// the journal in dir open, would understand all of it. It changes nothing, and may be
// called while the journal is in use. A journal of another boot, and doubt that the
// journal itself remembers, are no errors.
func Check(dir, bootID string) (err error) {
	for range checks {
		if err = check(dir, bootID); err == nil {
			return nil
		}
	}
	return fmt.Errorf("journal in %s: %w", dir, err)
}

func check(dir, bootID string) error {
	_, err := look(dir, bootID)
	return err
}

// Live returns how many entries of this boot the journal in dir has, which somebody else may have open. Without a journal
// there are none.
func Live(dir, bootID string) (n int, err error) {
	for range checks {
		if n, err = look(dir, bootID); err == nil || errors.Is(err, fs.ErrNotExist) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("journal in %s: %w", dir, err)
}

func look(dir, bootID string) (live int, err error) {
	f, err := os.OpenFile(filepath.Join(dir, journalName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	h, _, err := readHeader(f, st.Size())
	if err != nil {
		return 0, err
	}
	if h.boot != bootID {
		return 0, nil
	}
	var d Damage
	r, idx := file{f: f, mark: h.mark}, newIndex(h.next, 0)
	if err := r.scan(idx, st.Size(), &d); err != nil {
		return 0, err
	}
	if st.Size() < h.base {
		d.unknown(fmt.Sprintf("it is cut off: it has %d bytes and began with %d", st.Size(), h.base))
	}
	if d.Unknown {
		return 0, errors.New(d.String())
	}
	return len(idx.live), nil
}
