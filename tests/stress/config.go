package stress

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// hold is one owner's use of a resource.
type hold struct {
	owner uint16
	node  uint8
	// back numbers a hold that its owner was told he did not get: the daemon takes
	// it back at any time. It is 0 for others.
	back uint16
}

// maybe is an operation that may have happened, at any time from now on or never.
type maybe struct {
	id   uint16 // its place among those of the resource
	kind Kind
	mode locking.Mode // of Acquire
	hold hold         // what Acquire brings; of the others, whose it is
}

// config is one way in which a resource may be, as far as the answers tell.
//
// What may have happened is kept back in maybes until an answer cannot be
// explained without it. Nothing is lost by that: if it happened earlier, no
// answer in between told of it, and what it brought went together with all that
// was held in between, so that it might as well have happened now.
type config struct {
	exclusive bool // of holds that are not empty
	holds     []hold
	maybes    []maybe  // that have not happened yet, by id
	dead      []uint16 // owners who get nothing any more, in order
}

// The methods that change something return copies and leave c as it is.

func (c config) fits(mode locking.Mode) bool {
	return len(c.holds) == 0 || mode == locking.Shared && !c.exclusive
}

func (c config) with(h hold, mode locking.Mode) config {
	c.holds = append(slices.Clip(c.holds), h)
	c.exclusive = mode == locking.Exclusive
	return c
}

func (c config) withoutHold(at int) config {
	c.holds = slices.Delete(slices.Clone(c.holds), at, at+1)
	c.exclusive = c.exclusive && len(c.holds) > 0
	return c
}

func (c config) withMaybe(m maybe) config {
	c.maybes = append(slices.Clip(c.maybes), m)
	slices.SortFunc(c.maybes, func(a, b maybe) int { return cmp.Compare(a.id, b.id) })
	return c
}

func (c config) withoutMaybe(at int) config {
	c.maybes = slices.Delete(slices.Clone(c.maybes), at, at+1)
	return c
}

// die ends an owner and what it has. What it had asked for does not happen any
// more, but for what is taken back.
func (c config) die(owner uint16) config {
	c.maybes = slices.DeleteFunc(slices.Clone(c.maybes), func(m maybe) bool { return m.hold.owner == owner && m.hold.back == 0 })
	c.holds = slices.DeleteFunc(slices.Clone(c.holds), func(h hold) bool { return h.owner == owner })
	c.exclusive = c.exclusive && len(c.holds) > 0
	if at, found := slices.BinarySearch(c.dead, owner); !found {
		c.dead = slices.Insert(slices.Clone(c.dead), at, owner)
	}
	return c
}

// expire: what was to be taken back has been.
func (c config) expire(id uint16) config {
	c.maybes = slices.DeleteFunc(slices.Clone(c.maybes), func(m maybe) bool { return m.id == id })
	c.holds = slices.DeleteFunc(slices.Clone(c.holds), func(h hold) bool { return h.back == id })
	c.exclusive = c.exclusive && len(c.holds) > 0
	return c
}

// settle: the daemon that was asked has ended, and the next one has looked at what
// it left. What may have happened has happened by now and stays, or never will.
func (c config) settle(id uint16) []config {
	if at := slices.IndexFunc(c.holds, func(h hold) bool { return h.back == id }); at >= 0 {
		kept := c
		kept.holds = slices.Clone(c.holds)
		kept.holds[at].back = 0
		return []config{kept, c.withoutHold(at)}
	}
	at := slices.IndexFunc(c.maybes, func(m maybe) bool { return m.id == id })
	if at < 0 {
		return []config{c}
	}
	m, never := c.maybes[at], c.withoutMaybe(at)
	next := []config{never}
	switch {
	case m.kind == Acquire && !slices.Contains(c.dead, m.hold.owner):
		m.hold.back = 0
		next = append(next, with(never.makeFit(m.mode), m.hold, m.mode)...)
	case m.kind == Release:
		if held := never.holdOf(m.hold.owner); held >= 0 {
			next = append(next, never.withoutHold(held))
		}
	}
	return next
}

// holdOf is where an owner's hold is: one that it keeps if there is one, since
// the other kind goes by itself. -1 if it has none.
func (c config) holdOf(owner uint16) int {
	best := -1
	for i, h := range c.holds {
		if h.owner == owner && (best < 0 || c.holds[best].back != 0) {
			best = i
		}
	}
	return best
}

// covers says that whatever d explains, c explains too: the same is held, and
// at least as much may still happen.
func (c config) covers(d config) bool {
	if c.exclusive != d.exclusive || !slices.Equal(c.holds, d.holds) || !slices.Equal(c.dead, d.dead) {
		return false
	}
	at := 0
	for _, m := range d.maybes {
		for at < len(c.maybes) && c.maybes[at].id < m.id {
			at++
		}
		if at == len(c.maybes) || c.maybes[at].id != m.id {
			return false
		}
	}
	return true
}

func compareHolds(a, b hold) int {
	return cmp.Or(cmp.Compare(a.owner, b.owner), cmp.Compare(a.node, b.node), cmp.Compare(a.back, b.back))
}

// appendKey is the same for configs that are the same.
func (c config) appendKey(b []byte) []byte {
	b = append(b, 0)
	if c.exclusive {
		b[len(b)-1] = 1
	}
	b = binary.AppendUvarint(b, uint64(len(c.holds)))
	for _, h := range c.holds {
		b = binary.AppendUvarint(b, uint64(h.owner)) // which has one node only
		b = binary.AppendUvarint(b, uint64(h.back))
	}
	b = binary.AppendUvarint(b, uint64(len(c.maybes)))
	for _, m := range c.maybes {
		b = binary.AppendUvarint(b, uint64(m.id))
	}
	b = binary.AppendUvarint(b, uint64(len(c.dead)))
	for _, o := range c.dead {
		b = binary.AppendUvarint(b, uint64(o))
	}
	return b
}

func (c config) String() string {
	if len(c.holds) == 0 {
		return "free"
	}
	mode := "shared"
	if c.exclusive {
		mode = "exclusive"
	}
	var b strings.Builder
	b.WriteString(mode)
	for _, h := range c.holds {
		fmt.Fprintf(&b, ", owner %d on node %d", h.owner, h.node)
		if h.back != 0 {
			b.WriteString(" (to be taken back)")
		}
	}
	return b.String()
}
