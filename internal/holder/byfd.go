package holder

import (
	"iter"
	"slices"
)

// maxFD bounds the list of a byFD: more descriptors than any process has.
const maxFD = 1 << 24

// byFD finds entries by their descriptor. The kernel gives out the lowest one that is
// free (open(2)), so a list is no longer than the process has ever had open at once,
// and is a third of a map of the same.
type byFD struct {
	list  []*entry
	count int // how many of list are not nil
}

// get is nil if there is none.
func (t *byFD) get(fd int) *entry {
	if fd < 0 || fd >= len(t.list) {
		return nil
	}
	return t.list[fd]
}

// set adds an entry whose descriptor no other one has.
func (t *byFD) set(e *entry) {
	if more := int(e.fd) + 1 - len(t.list); more > 0 {
		t.list = append(t.list, make([]*entry, more)...)
	}
	t.list[e.fd] = e
	t.count++
}

// remove takes out an entry, unless another one has its descriptor by now.
func (t *byFD) remove(e *entry) {
	if t.get(int(e.fd)) != e {
		return
	}
	t.list[e.fd] = nil
	t.count--
	if int(e.fd) < len(t.list)-1 {
		return
	}
	end := len(t.list)
	for end > 0 && t.list[end-1] == nil {
		end--
	}
	if t.list = t.list[:end]; cap(t.list) > 4*end+256 {
		t.list = slices.Clone(t.list)
	}
}

// all gives all entries, by descriptor. The current one may be removed meanwhile.
func (t *byFD) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, e := range t.list {
			if e != nil && !yield(e) {
				return
			}
		}
	}
}
