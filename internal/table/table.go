// Package table has a hash table of things that know their keys themselves.
package table

import (
	"hash/maphash"
	"iter"
)

// Table finds things by a key that each of them knows itself. A map would keep every
// key once more, and stay as large as it ever was; of ten thousand held disks this
// has a quarter of a map's memory.
//
// It is open addressing with linear probing: a thing is at the place that its key's
// hash names, or in the unbroken row of others that begins there.
type Table[K comparable, V any] struct {
	key   func(*V) K // of a thing in the table; must not change while it is there
	seed  maphash.Seed
	slots []*V // a power of two of them, or none; at least a quarter is nil
	count int
}

// leastSlots is the smallest size of a table that has something in it.
const leastSlots = 8

// New is an empty table of things with that key. It is for one goroutine at a time.
func New[K comparable, V any](key func(*V) K) Table[K, V] {
	return Table[K, V]{key: key, seed: maphash.MakeSeed()}
}

// Len is how many things there are.
func (t *Table[K, V]) Len() int { return t.count }

// Get is nil if nothing has this key.
func (t *Table[K, V]) Get(k K) *V {
	if t.count == 0 {
		return nil
	}
	return t.slots[t.find(k)]
}

// Put adds v, in the place of what has the same key.
func (t *Table[K, V]) Put(v *V) {
	if 4*(t.count+1) > 3*len(t.slots) {
		t.resize(max(leastSlots, 2*len(t.slots)))
	}
	i := t.find(t.key(v))
	if t.slots[i] == nil {
		t.count++
	}
	t.slots[i] = v
}

// Remove ignores a key that nothing has.
func (t *Table[K, V]) Remove(k K) {
	if t.count == 0 {
		return
	}
	gap := t.find(k)
	if t.slots[gap] == nil {
		return
	}
	t.count--
	// No row may have a gap between the beginning of a thing's row and its place.
	mask := len(t.slots) - 1
	for i := (gap + 1) & mask; t.slots[i] != nil; i = (i + 1) & mask {
		home := t.home(t.key(t.slots[i]))
		if (i-home)&mask >= (i-gap)&mask {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = nil
	if len(t.slots) > leastSlots && 8*t.count < len(t.slots) {
		t.resize(len(t.slots) / 2)
	}
}

// All gives everything in no order. The table must not change meanwhile.
func (t *Table[K, V]) All() iter.Seq[*V] {
	return func(yield func(*V) bool) {
		for _, v := range t.slots {
			if v != nil && !yield(v) {
				return
			}
		}
	}
}

// Expect makes room for n things at once, as growing would touch twice the memory.
func (t *Table[K, V]) Expect(n int) {
	size := leastSlots
	for 3*size < 4*n {
		size *= 2
	}
	if size > len(t.slots) {
		t.resize(size)
	}
}

// find is where k is, or where it belongs; the slot is nil then. There must be slots.
func (t *Table[K, V]) find(k K) int {
	mask := len(t.slots) - 1
	i := t.home(k)
	for t.slots[i] != nil && t.key(t.slots[i]) != k {
		i = (i + 1) & mask
	}
	return i
}

func (t *Table[K, V]) home(k K) int {
	return int(maphash.Comparable(t.seed, k) & uint64(len(t.slots)-1))
}

func (t *Table[K, V]) resize(size int) {
	old := t.slots
	t.slots = make([]*V, size)
	for _, v := range old {
		if v != nil {
			t.slots[t.find(t.key(v))] = v
		}
	}
}
