package difftest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

var (
	seed  = flag.Uint64("seed", 0, "for the random sequences; 0 is a fixed one")
	steps = flag.Int("steps", 4000, "length of the random sequence")
)

// noProcess is beyond the highest pid that Linux can give (PID_MAX_LIMIT).
const noProcess = 1<<22 + 7

// gen makes random steps. No two names in it lead to the same file, and no
// lockspace leads to something that is not a directory: there virtlockd does
// what vmlockd does not want to do.
type gen struct {
	*rand.Rand
	pids []int32
}

func pick[T any](g gen, list ...T) T { return list[g.IntN(len(list))] }

func (g gen) flags(known uint32) uint32 {
	if g.IntN(30) == 0 {
		return g.Uint32()
	}
	return g.Uint32() & known
}

func (g gen) space() string {
	return pick(g, "", "", "", "$D/ls0", "$D/ls0", "$D/ls1", "$D/ls1", "$D/ls2", "/unknown")
}

func (g gen) ref() (space, name string) {
	space = g.space()
	if g.IntN(25) == 0 {
		return space, pick(g, "", ".", "/nonexistent/x", strings.Repeat("x", 300), strings.Repeat("y", 65537), "\x00%n", "/nonexistent/%s\x00")
	}
	if space == "" {
		return "", "$D/" + pick(g, "d0", "d1", "d2", "d3", "d0/x", "none")
	}
	return space, pick(g, "a", "b", "c", "\xff\x01", "none/x")
}

func (g gen) step() step {
	on := g.IntN(6)
	space, name := g.ref()
	switch n := g.IntN(100); {
	case n < 10:
		return register(on, pick(g, g.pids...), g.Uint32N(8), g.flags(0))
	case n < 11 && g.IntN(4) == 0:
		return restrict(on, g.flags(0))
	case n < 13:
		return newSpace(on, pick(g, "", "$D/ls0", "$D/ls1", "$D/ls2"), g.flags(0))
	case n < 16:
		return createSpace(on, pick(g, "", "$D/ls0", "$D/ls1", "$D/ls2", "$D/plain/x"))
	case n < 24:
		return onResource(on, lockprogram.ProcCreateResource, space, name, g.flags(0))
	case n < 30:
		return onResource(on, lockprogram.ProcDeleteResource, space, name, g.flags(0))
	case n < 64:
		return acquire(on, space, name, g.flags(3))
	case n < 94:
		return onResource(on, lockprogram.ProcReleaseResource, space, name, g.flags(0))
	default:
		return g.broken(on)
	}
}

// broken is a message that is wrong in one way or another.
func (g gen) broken(on int) step {
	s := pick(g, acquire(on, "$D/ls0", "a", 3), register(on, 0, 1, 0), createSpace(on, "$D/ls0"), release(on, "", "$D/d0"))
	switch g.IntN(8) {
	case 0:
		cut := g.Float64()
		return s.with("cut short", func(r *request) { r.payload = r.payload[:int(cut*float64(len(r.payload)))] })
	case 1:
		status := g.Uint32N(5)
		return s.with(fmt.Sprintf("status %d", status), func(r *request) { r.status = status })
	case 2:
		typ := pick[uint32](g, 1, 2, 3, 5, 6, 77)
		return s.with(fmt.Sprintf("type %d", typ), func(r *request) { r.typ = typ })
	case 3:
		procedure := int32(g.Uint32N(20)) - 5
		return s.with(fmt.Sprintf("as procedure %d", procedure), func(r *request) { r.procedure = procedure })
	case 4:
		program, version := pick(g, lockprogram.ProgramNumber, 1), g.Uint32N(3)
		return s.with(fmt.Sprintf("program %#x version %d", program, version), func(r *request) { r.program, r.version = program, version })
	case 5:
		n := g.IntN(10000)
		return s.with(fmt.Sprintf("%d bytes too many", n), func(r *request) { r.payload = append(r.payload, make([]byte, n)...) })
	case 6:
		fds := g.IntN(4)
		return s.with(fmt.Sprintf("%d descriptors", fds), func(r *request) {
			r.typ, r.fds = 4, fds
			r.payload = append([]byte{0, 0, 0, byte(fds)}, r.payload...)
		})
	default:
		length := pick[uint32](g, 1, 27, 33_554_437)
		return s.with(fmt.Sprintf("length %d", length), func(r *request) { r.length = length })
	}
}

// TestAgainstVirtlockdAtRandom goes through all procedures in random order, in
// the names of owners that live, that never lived, and that cannot be.
func TestAgainstVirtlockdAtRandom(t *testing.T) {
	p := newPlayers(t)
	g := gen{
		Rand: rand.New(rand.NewPCG(*seed, 1)),
		pids: append(children(t, 2), 0, -1, -77, noProcess),
	}
	answers := map[string]int{}
	for i := range *steps {
		s := g.step()
		if !p.run(s) {
			t.Fatalf("step %d of seed %d", i, *seed)
		}
		if g.IntN(40) == 0 {
			p.drop(s.on)
		}
		answers[p.last]++
	}
	p.sameFiles()
	// The sequence is worth something only if it gets everywhere.
	for _, want := range []string{"OK", "no answer", "closed", "1/7", "1/51", "8/7", "29/7", "38/0", "38/51", "39/7", "55/7", "87/51"} {
		if answers[want] == 0 {
			t.Errorf("no step was answered with %s: %v", want, answers)
		}
	}
	t.Logf("answers: %v", answers)
}
