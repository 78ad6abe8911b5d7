package stress

import (
	"fmt"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// effectFloor is the share of all operations, one in so many, that has to be
// granted exclusively, granted shared, and refused for a conflict, each. Usually
// it is one in four or five.
const effectFloor = 50

// effect says whether the history can prove anything: one in which hardly
// anything is granted, or hardly anybody meets another, has no violations either.
func (h *History) effect(operations int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var exclusive, shared, busy int
	for _, o := range h.Ops {
		switch {
		case o.Kind != Acquire:
		case o.Answer == Busy:
			busy++
		case o.Answer == Done && o.Mode == locking.Shared:
			shared++
		case o.Answer == Done:
			exclusive++
		}
	}
	if least := max(operations/effectFloor, 1); min(exclusive, shared, busy) < least {
		return fmt.Errorf("of %d operations %d were granted exclusively, %d shared, and %d refused for a conflict; with less than %d of each the run proves nothing",
			len(h.Ops), exclusive, shared, busy, least)
	}
	return nil
}
