package chaos_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/tests/stress"
)

// writer is a process that wants a disk again and again, until something ends it.
type writer struct {
	who   string // unique for its disk
	node  int
	ended time.Time // when it was known to be gone; zero while it is not
}

// hold is one turn of a writer with the lock, as the storage has it; all times are by the
// clock of this machine, which is that of the storage.
type hold struct {
	who         string
	turn        int
	asks, held  time.Time // before and after the grant
	last        time.Time // of its records
	records     int
	gives, gave time.Time // before and after it was given back; zero if it was not
}

// to is until when it has certainly written.
func (h hold) to() time.Time {
	if h.last.After(h.held) {
		return h.last
	}
	return h.held
}

// fileName is that of a file of tests/guard/writer.
var fileName = regexp.MustCompile(`^(n\d+-\d+)-(\d{4})-(asks|held|gives|gave|\d{6,})$`)

// readHolds reads what writers have left in a directory, in the order of the grants.
// Turns that have brought nothing are left out.
func readHolds(dir string) ([]hold, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	turns := map[string]*hold{}
	for _, e := range entries {
		m := fileName.FindStringSubmatch(e.Name())
		if m == nil {
			return nil, fmt.Errorf("%s: no writer makes a file of that name", e.Name())
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being made anew
		}
		if err != nil {
			return nil, err
		}
		key, at := m[1]+"-"+m[2], info.ModTime()
		h := turns[key]
		if h == nil {
			turn, err := strconv.Atoi(m[2])
			if err != nil {
				return nil, err
			}
			h = &hold{who: m[1], turn: turn}
			turns[key] = h
		}
		switch m[3] {
		case "asks":
			h.asks = at
		case "held":
			h.held = at
		case "gives":
			h.gives = at
		case "gave":
			h.gave = at
		default:
			h.records++
			if at.After(h.last) {
				h.last = at
			}
		}
	}
	var list []hold
	for key, h := range turns {
		if h.held.IsZero() {
			if h.records > 0 || !h.gives.IsZero() {
				return nil, fmt.Errorf("%s has %d records, and no lock", key, h.records)
			}
			continue
		}
		list = append(list, *h)
	}
	return sorted(list), nil
}

// sorted puts grants into their order.
func sorted(list []hold) []hold {
	slices.SortFunc(list, func(a, b hold) int {
		return cmp.Or(a.held.Compare(b.held), strings.Compare(a.who, b.who), cmp.Compare(a.turn, b.turn))
	})
	return list
}

// overlaps lists where somebody has written although another one had begun: each time
// the older hold and the younger.
func overlaps(list []hold) (pairs [][2]hold) {
	for i, h := range list {
		for _, old := range list[:i] {
			if old.who != h.who && !old.to().Before(h.held) {
				pairs = append(pairs, [2]hold{old, h})
			}
		}
	}
	return pairs
}

// tick is the precision of times of files: that of the kernel's clock for them.
const tick = 10 * time.Millisecond

// history is what writers of one disk have been told, for Porcupine. Refusals are not in it:
// a lock may be refused although nobody has it.
func history(began time.Time, resource int, holds []hold, writers []writer) *stress.History {
	h := &stress.History{}
	since := func(t time.Time) time.Duration { return t.Sub(began) }
	for i, w := range writers {
		h.Owners = append(h.Owners, stress.Owner{Node: w.node, Killed: math.MaxInt64})
		var last hold // what it has had last
		for _, g := range holds {
			if g.who != w.who {
				continue
			}
			last = g
			op := stress.Op{Resource: resource, Mode: locking.Exclusive, Owner: i, Answer: stress.Done}
			op.Kind, op.Call, op.Return = stress.Acquire, since(g.asks), since(g.held)+tick
			h.Ops = append(h.Ops, op)
			if !g.gave.IsZero() {
				op.Kind, op.Call, op.Return = stress.Release, since(g.gives), since(g.gave)+tick
				h.Ops = append(h.Ops, op)
			}
		}
		if last.who != "" && last.gave.IsZero() && !w.ended.IsZero() {
			h.Ops = append(h.Ops, stress.Op{Resource: resource, Kind: stress.Death, Owner: i, Answer: stress.Done, Call: since(last.to()), Return: since(w.ended) + tick})
		}
	}
	return h
}

// pause is a time without a grant.
type pause struct{ from, to time.Time }

func (p pause) length() time.Duration { return p.to.Sub(p.from) }

// longestPause is the longest time between two grants of any disk, and from when to when
// it was looked at.
func longestPause(from, to time.Time, disks ...[]hold) (longest pause) {
	at := []time.Time{from, to}
	for _, list := range disks {
		for _, h := range list {
			if h.held.After(from) && h.held.Before(to) {
				at = append(at, h.held)
			}
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	for i, t := range at[1:] {
		if p := (pause{at[i], t}); p.length() > longest.length() {
			longest = p
		}
	}
	return longest
}

// takeOvers are the times from the last record of who has lost a lock to the grant to the next one, on another node.
func takeOvers(holds []hold, writers []writer) (list []time.Duration) {
	node := map[string]int{}
	for _, w := range writers {
		node[w.who] = w.node
	}
	for i := range max(0, len(holds)-1) {
		if h, next := holds[i], holds[i+1]; h.gave.IsZero() && node[h.who] != node[next.who] {
			list = append(list, next.held.Sub(h.to()))
		}
	}
	return list
}
