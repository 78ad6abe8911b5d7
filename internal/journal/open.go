package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Names in the journal's directory. Files that were set aside are journalName,
// ".damaged-" or otherBootSuffix, and what tells them apart.
const (
	journalName     = "journal"
	freshName       = "journal.new"  // becomes journalName by a rename
	lockName        = "journal.lock" // holds the flock, since the journal itself is replaced; pid, boot id and start time of its last user
	otherBootSuffix = ".other-boot"
)

// Recovered is what an earlier process of this boot left behind.
type Recovered struct {
	Entries    []locking.Entry // in order of Seq
	Lockspaces []string        // in the order in which they were added
	Damage     *Damage         // nil if every record could be read
	// Fresh: there was no journal of this boot, which is right for the first process of a boot only, and nobody
	// has called Suspect or Settled since. Whoever is told so finds out whether anything is held, and calls
	// one of them; if it is killed before, the next one is told so too.
	Fresh bool
}

// BootID returns what the kernel calls this boot: a UUID, in text.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Open opens the journal in dir, which must exist, for this process alone, and
// begins one if there is none. bootID has 1 to 64 bytes; a journal of another
// boot is set aside, as its locks ended with that boot.
//
// Damage is no error: it is in Recovered, the damaged file is kept under a name
// that Damage tells, and the new journal remembers Damage.Unknown until Settled
// is called. An error is ErrInUse or a system error; nothing has been lost then,
// and the daemon must not serve.
//
// Memory: about 1 MiB, and what is returned, and 64 bytes for each live entry.
func Open(dir, bootID string) (_ *Journal, _ Recovered, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("journal in %s: %w", dir, err)
		}
	}()
	if bootID == "" || len(bootID) > maxBoot {
		return nil, Recovered{}, fmt.Errorf("a boot id has 1 to %d bytes", maxBoot)
	}
	lock, lastBoot, err := lockDir(dir)
	if err != nil {
		return nil, Recovered{}, err
	}
	j := &Journal{dir: dir, boot: bootID, lock: lock, compactAt: compactMin}
	var d Damage
	var r Recovered
	r.Fresh, err = j.load(lastBoot, &d)
	if err == nil {
		r.Lockspaces = j.idx.order[:len(j.idx.order):len(j.idx.order)]
		r.Entries, err = j.decodeAll()
	}
	if err == nil {
		err = j.signLock(startTime(os.Getpid()))
	}
	if err != nil {
		if j.f != nil {
			j.f.Close()
		}
		lock.Close()
		return nil, Recovered{}, err
	}
	if d.any() {
		r.Damage = &d
	}
	j.mu.Lock()
	j.lockedTidy()
	j.mu.Unlock()
	return j, r, nil
}

// lockDir makes this process the only user of the directory, and returns the
// boot id of the last one, if that got as far as having a journal.
func lockDir(dir string) (lock *os.File, lastBoot string, err error) {
	lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, "", err
	}
	text := make([]byte, 256)
	n, _ := lock.ReadAt(text, 0)
	first, started, _ := strings.Cut(string(text[:n]), "\n")
	pid, lastBoot, _ := strings.Cut(strings.TrimSpace(first), " ")
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		if err := awaitEnd(pid, strings.TrimSpace(started)); err != nil {
			lock.Close()
			return nil, "", err
		}
		return lock, lastBoot, nil
	}
	lock.Close()
	if err == unix.EWOULDBLOCK {
		err = ErrInUse
		if _, e := strconv.Atoi(pid); e == nil {
			err = fmt.Errorf("%w: most likely process %s", ErrInUse, pid)
		}
	}
	return nil, "", err
}

// signLock notes who uses the journal.
func (j *Journal) signLock(started string) error {
	if err := j.lock.Truncate(0); err != nil {
		return err
	}
	_, err := j.lock.WriteAt(fmt.Appendf(nil, "%d %s\n%s\n", os.Getpid(), j.boot, started), 0)
	return err
}

// unjudged is the doubt of a journal that is Fresh. It comes with the file, so that there is no moment in which
// the journal is there, explains nothing and says that this is all. Versions that do not know it take it
// for any other doubt, and after Settled there is none.
const unjudged = "this journal was begun, and nobody has found out yet whether anything was held before"

// load makes j.file and j.idx. fresh: see Recovered.
func (j *Journal) load(lastBoot string, d *Damage) (fresh bool, err error) {
	f, err := os.OpenFile(filepath.Join(j.dir, journalName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if lastBoot == j.boot {
			d.Missing = true
			d.unknown("there was a journal in this boot, and it is gone")
			return false, j.replace(&file{}, newIndex(1, 0), d)
		}
		return true, j.replace(&file{}, newUnjudged(), d)
	}
	if err != nil {
		return false, err
	}
	old := file{f: f}
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !st.Mode().IsRegular() {
		return false, fmt.Errorf("%s is no regular file", journalName)
	}
	size := st.Size()

	h, damagedCopy, err := readHeader(f, size)
	if err != nil {
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			return false, err // of reading
		}
		d.unknown("no record of the journal can be read: " + err.Error())
		d.region(0, size)
		if err := j.setAside(&old, size, "", d); err != nil {
			return false, err
		}
		return false, j.replace(&old, newIndex(1, 0), d)
	}
	if h.boot != j.boot {
		d.OtherBoot = h.boot
		if err := j.setAside(&old, size, otherBootSuffix, d); err != nil {
			return false, err
		}
		return true, j.replace(&old, newUnjudged(), d)
	}

	old.mark = h.mark
	// Of a file that is compacted most is entries, of perhaps 200 bytes.
	idx := newIndex(h.next, int(min(size, compactMin)/256))
	if err := old.scan(idx, size, d); err != nil {
		return false, err
	}
	if size < h.base {
		d.unknown(fmt.Sprintf("it is cut off: it has %d bytes and began with %d", size, h.base))
	}
	if d.Unknown {
		// What was not understood may have been about entries with higher seqs.
		idx.next += uint64(size / minRecord)
	}
	fresh = idx.doubt == unjudged && !d.Unknown
	if d.Unknown || damagedCopy {
		if damagedCopy {
			d.note("one of the two headers is damaged, the other is not")
		}
		if err := j.setAside(&old, size, "", d); err != nil {
			return false, err
		}
		return fresh, j.replace(&old, idx, d)
	}
	if old.end < size {
		d.Tail = size - old.end
		stepCut.before.Pass()
		if err := f.Truncate(old.end); err != nil {
			return false, err
		}
		stepCut.after.Pass()
	}
	if idx.doubt != "" && !fresh {
		d.Earlier = idx.doubt
		d.Unknown = true
	}
	j.file, j.idx, j.reserved = old, idx, old.end
	keep = true
	return fresh, nil
}

// readHeader returns the first copy of the header that can be read.
func readHeader(f *os.File, size int64) (h header, otherDamaged bool, err error) {
	b := make([]byte, headersLen)
	n, err := f.ReadAt(b[:min(size, headersLen)], 0)
	if err != nil && n < int(min(size, headersLen)) {
		return h, false, err
	}
	b = b[:n]
	h, err1 := decodeHeader(b[:min(n, copyLen)])
	h2, err2 := decodeHeader(b[min(n, copyLen):])
	switch {
	case err1 == nil:
		return h, err2 != nil || h2 != h, nil
	case err2 == nil:
		return h2, true, nil
	case errors.Is(err1, errHeader):
		return h, false, err2
	}
	return h, false, err1
}

// scan applies every record that can be read, and sets f.end to where the last
// one ends.
func (f *file) scan(idx *index, size int64, d *Damage) error {
	win := &window{f: f.f, mark: f.mark, end: size}
	defer func() { f.spare = win.buf[:0] }()
	f.end = headersLen
	for off := int64(headersLen); off < size; {
		rec, v, err := win.record(off)
		if err != nil {
			return err
		}
		switch v {
		case whole:
			if err := idx.apply(off, rec); err != nil {
				d.unknown(fmt.Sprintf("at %d: %v", off, err))
				d.region(off, int64(len(rec)))
			}
			off += int64(len(rec))
			f.end = off
		case torn:
			return nil
		case broken:
			next, err := win.resume(off + 1)
			if err != nil {
				return err
			}
			d.unknown(fmt.Sprintf("%d bytes at %d are no record", next-off, off))
			d.region(off, next-off)
			off = next
		}
	}
	return nil
}

// setAside gives the file a second name, so that it is still there when a fresh
// one takes its place. A damaged file gets a name that follows from its content,
// so that being killed between the two steps again and again makes no heap of files.
func (j *Journal) setAside(old *file, size int64, suffix string, d *Damage) error {
	path := filepath.Join(j.dir, journalName+suffix)
	stepAside.before.Pass()
	if suffix == "" {
		var crc uint32
		win := &window{f: old.f, end: size}
		for off := int64(0); off < size; off += windowLen {
			b, err := win.at(off, int(min(windowLen, size-off)))
			if err != nil {
				return err
			}
			crc = sum(int64(crc), b)
		}
		path += fmt.Sprintf(".damaged-%08x-%d", crc, size)
	} else if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Of other boots the last one's is enough.
		return err
	}
	if err := os.Link(filepath.Join(j.dir, journalName), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	stepAside.after.Pass()
	d.Aside = path
	return nil
}

// replace makes a fresh journal of what idx holds, whose records are in old, and
// of the doubt that d brings.
func (j *Journal) replace(old *file, idx *index, d *Damage) error {
	doubt := ""
	if d.Unknown {
		doubt = d.reason()
	}
	switch {
	case idx.doubt == unjudged && !d.Unknown:
		doubt = unjudged // and nothing else: it is Fresh
	case idx.doubt != "":
		d.Earlier, d.Unknown = idx.doubt, true
		doubt = cutTo(strings.Trim(idx.doubt+"; "+doubt, "; "), MaxName)
	}
	w, err := newFresh(j.dir, j.boot, idx.next)
	if err != nil {
		return err
	}
	live := idx.entries(nil)
	inOrder(live)
	win := &window{f: old.f, mark: old.mark, end: old.end}
	if err = w.copyLive(win, idx.order, doubt, live); err == nil {
		err = w.install()
	}
	if err != nil {
		w.abandon()
		return err
	}
	j.file, j.idx, j.reserved = w.file, w.idx, w.end
	return nil
}

// decodeAll returns the live entries, in order.
func (j *Journal) decodeAll() ([]locking.Entry, error) {
	seqs := j.idx.seqs()
	entries := make([]locking.Entry, 0, len(seqs))
	// The entries are read once more, but not into memory that is new again.
	win := &window{f: j.f, mark: j.mark, end: j.end, buf: j.spare}
	j.spare = nil
	same := commons{}
	for _, seq := range seqs {
		l := liveEntry{seq, j.idx.live[seq]}
		rec, err := readEntry(win, l)
		if err != nil {
			return nil, err
		}
		e, err := decodeEntry(rec, true)
		if err != nil {
			return nil, err
		}
		e.State = l.state
		// Few are different.
		e.Ref.Lockspace, e.Owner.Name = same.one(e.Ref.Lockspace), same.one(e.Owner.Name)
		entries = append(entries, e)
	}
	return entries, nil
}

// commons gives equal strings the same memory, as far as there are few.
type commons map[string]string

func (c commons) one(s string) string {
	if had, ok := c[s]; ok {
		return had
	}
	if len(c) < 1024 {
		c[s] = s
	}
	return s
}

func cutTo(s string, n int) string {
	return string(bytes.ToValidUTF8([]byte(s[:min(n, len(s))]), nil))
}

// Size is how long the journal in dir is, in bytes; 0 if there is none that can be
// looked at.
func Size(dir string) int64 {
	st, err := os.Lstat(filepath.Join(dir, journalName))
	if err != nil {
		return 0
	}
	return st.Size()
}
