package holder

import (
	"slices"
	"sort"
)

// store is what the holder has: a list in order of ids, which only grow. It is a
// third of a map of the same, and listing it in pages needs no sorting.
type store struct {
	list []held
	live int    // how many of list have a descriptor
	next uint64 // lowest id that was never used
}

type held struct {
	id  uint64
	key string
	fd  int32 // -1: dropped
}

func (s *store) add(id uint64, key string, fd int) {
	s.list = append(s.list, held{id: id, key: key, fd: int32(fd)})
	s.live++
	s.next = id + 1
}

// drop returns the descriptor that had this id, or -1.
func (s *store) drop(id uint64) int {
	i := s.after(id - 1)
	if i == len(s.list) || s.list[i].id != id || s.list[i].fd < 0 {
		return -1
	}
	fd := int(s.list[i].fd)
	s.list[i].fd, s.list[i].key = -1, ""
	s.live--
	if dead := len(s.list) - s.live; dead > 64 && dead > s.live {
		s.list = slices.DeleteFunc(s.list, func(h held) bool { return h.fd < 0 })
		if cap(s.list) > 4*s.live+256 {
			s.list = slices.Clone(s.list)
		}
	}
	return fd
}

// after is the index of the first entry with a higher id.
func (s *store) after(id uint64) int {
	return sort.Search(len(s.list), func(i int) bool { return s.list[i].id > id })
}
