package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/vmlockd/vmlockd/internal/failpoint"
)

// Frozen is a process that was stopped, as it is noted.
type Frozen struct {
	Owner
	Since    time.Duration `json:"since"`    // by the guard's clock
	Deadline time.Duration `json:"deadline"` // from when on it must not go on
}

// Saved is what survives the daemon. It is void after a reboot.
type Saved struct {
	Boot      string               `json:"boot"`
	At        time.Duration        `json:"at"` // by the guard's clock
	Proven    time.Duration        `json:"proven"`
	Armed     bool                 `json:"armed,omitempty"`   // the watchdog
	Device    string               `json:"device,omitempty"`  // which one that is; "" if a version has noted it that did not say
	Left      []string             `json:"left,omitempty"`    // devices besides that one that may be armed: earlier daemons have left them so
	Parted    bool                 `json:"parted,omitempty"`  // nobody counts on what runs here, and what is in Frozen never goes on: the guard that has noted this has withdrawn
	Totem     *Totem               `json:"totem,omitempty"`   // nil if it was not known
	Fencing   *bool                `json:"fencing,omitempty"` // whether dlm_controld fences; nil if that was not known
	Frozen    []Frozen             `json:"frozen,omitempty"`
	Entered   bool                 `json:"entered"`
	Ring      uint64               `json:"ring"`
	Since     time.Duration        `json:"ring_since,omitempty"` // when that ring was seen first; 0 if a version has noted it that did not know
	Known     map[uint32]time.Time `json:"known,omitempty"`
	Words     map[uint32]word      `json:"words,omitempty"`
	Facts     []fact               `json:"facts,omitempty"`
	Confirmed []uint32             `json:"confirmed,omitempty"`
}

// maxSaved bounds what is read. A stopped process takes 200 bytes.
const maxSaved = 16 << 20

// File keeps a Saved in a file, on a tmpfs, since it is void after a reboot.
type File struct {
	Path string
	Boot string // of this boot
}

// Load returns nil if there is nothing of this boot. A file that cannot be read is
// an error, and must not be taken for none.
func (f File) Load() (*Saved, error) {
	r, err := os.Open(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSaved+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSaved {
		return nil, fmt.Errorf("%s has more than %d bytes, and was not written by vmlockd", f.Path, maxSaved)
	}
	var s Saved
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	if s.Boot != f.Boot {
		return nil, nil
	}
	return &s, nil
}

// The points at which a test kills the process: what replaces the file is written, and
// has its name.
var (
	saveBefore = failpoint.New("guard.save.before")
	saveAfter  = failpoint.New("guard.save.after")
)

// Save replaces the file as a whole: whoever is killed meanwhile leaves the old
// one or the new one.
func (f File) Save(s Saved) error {
	s.Boot = f.Boot
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	fresh := filepath.Join(filepath.Dir(f.Path), "."+filepath.Base(f.Path)+".new")
	if err := os.WriteFile(fresh, b, 0o600); err != nil {
		return err
	}
	saveBefore.Pass()
	defer saveAfter.Pass()
	return os.Rename(fresh, f.Path)
}

// save is what a ledger has to survive.
func (l *ledger) save(s *Saved) {
	// Whoever has not heard the others yet has to hear them after a restart, too.
	s.Entered = l.entered && len(l.unheard) == 0
	s.Ring, s.Since, s.Known, s.Words, s.Facts = l.ring, l.since, l.known, l.words, l.list()
	if l.restored {
		s.At = l.restoredAt // nothing is known of the time since
	} else if l.lookedAt > 0 {
		s.At = l.lookedAt // nor of that since the last look, should there be none any more
	}
	s.Confirmed = s.Confirmed[:0]
	for node := range l.confirmed {
		s.Confirmed = append(s.Confirmed, node)
	}
}

// restore is the opposite.
func (l *ledger) restore(s *Saved) {
	l.entered, l.ring, l.since = s.Entered, s.Ring, s.Since
	l.restored, l.restoredAt = true, s.At
	for node, seen := range s.Known {
		l.known[node] = seen
	}
	for node, w := range s.Words {
		l.words[node] = w
	}
	for _, f := range s.Facts {
		l.facts[f.Node] = f
	}
	for _, node := range s.Confirmed {
		l.confirmed[node] = struct{}{}
	}
}
