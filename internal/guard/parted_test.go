package guard

import (
	"testing"
	"time"
)

// Where it is known late that dlm_controld fences, a guard that withdraws does not leave processes stopped: those that it has stopped
// before, or the one before it, go on first.
func TestPartedWithoutStopped(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		b.mu.Lock()
		b.timing.Grace = 20 * time.Second // so that it is not killed before its locks are proved
		b.timing.HoldOff = b.timing.LeastHoldOff()
		b.mu.Unlock()
		x.start()
		b.settle(b.ctx, 5*time.Second)
		b.fall()
		b.stops()
		x.kill()
		b.change("the network heals", b.lockedHeal)
		b.mu.Lock()
		x.fences = true
		b.mu.Unlock()
		x.start()
		took, err := b.withdraw()
		if err != nil || took > b.timing.FenceBy()+killTime {
			t.Errorf("after %v: %v", took, err)
		}
		b.is("what was stopped", true, false)
	})
}
