package difftest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/testenv"
	"github.com/vmlockd/vmlockd/lab"
)

const (
	// sequence is how many steps are played with one pair of daemons. virtlockd leaks
	// 60 kB with each registration (of these it is one step in ten), so that it has
	// some 30 MB more at the end.
	sequence = 5000
	// few is how many are played where the lab is not asked for, and many where it is.
	few, many = sequence, 100_000
	seedEnv   = "VMLOCKD_DIFF_SEED"
	stepsEnv  = "VMLOCKD_DIFF_STEPS"
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

// step is one that comes next, or several that are sent together.
func (g gen) step() step {
	s := g.one(g.IntN(6))
	if g.IntN(20) == 0 {
		return s.then(g.step().moved(s.on))
	}
	return s
}

func (g gen) one(on int) step {
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
// the names of owners that live, that never lived, and that cannot be. Some
// sequences are played side by side, each on daemons of its own.
func TestAgainstVirtlockdAtRandom(t *testing.T) {
	usual := few
	if os.Getenv(lab.Env) != "" {
		usual = many
	}
	seeds := []int{}
	for first := range (testenv.Rounds(t, stepsEnv, usual) + sequence - 1) / sequence {
		seeds = append(seeds, first+1)
	}
	if os.Getenv(seedEnv) != "" {
		seeds = []int{testenv.Rounds(t, seedEnv, 1)}
	}
	var mu sync.Mutex
	answers, played := map[string]int{}, 0
	t.Run("sequences", func(t *testing.T) {
		for _, seed := range seeds {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				got, n := play(t, seed)
				mu.Lock()
				defer mu.Unlock()
				for kind, n := range got {
					answers[kind] += n
				}
				played += n
			})
		}
	})
	t.Logf("%d steps, answered with %v", played, answers)
	if t.Failed() || os.Getenv(seedEnv) != "" {
		return
	}
	// The sequences are worth something only if they get everywhere.
	for _, want := range []string{"OK", "no answer", "closed", "1/7", "1/51", "8/7", "29/7", "38/0", "38/51", "39/7", "55/7", "87/51"} {
		if answers[want] == 0 {
			t.Errorf("no step was answered with %s", want)
		}
	}
}

// play is one sequence. It returns how often there was each kind of answer, and
// the number of steps.
func play(t *testing.T, seed int) (answers map[string]int, steps int) {
	defer func() {
		if t.Failed() {
			t.Logf("this one alone, as root with virtlockd installed: %s=1 %s=%d go test -count=1 -run '^TestAgainstVirtlockdAtRandom$' ./internal/difftest",
				lab.Env, seedEnv, seed)
		}
	}()
	p := newPlayers(t)
	g := gen{
		Rand: rand.New(rand.NewPCG(uint64(seed), 1)),
		pids: append(children(t, 2), 0, -1, -77, noProcess),
	}
	answers = map[string]int{}
	for steps < sequence {
		s := g.step()
		if !p.run(s) {
			t.Fatalf("sequence %d differs at its step %d", seed, steps)
		}
		if g.IntN(40) == 0 {
			p.drop(s.on)
		}
		for next := &s; next != nil; next = next.next {
			steps++
		}
		for _, kind := range p.last {
			answers[kind]++
		}
	}
	p.sameFiles()
	return answers, steps
}
