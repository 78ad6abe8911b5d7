// Package failpoint lets a crash test kill the daemon at a chosen instruction.
//
// A package declares its points as variables and passes them where something
// becomes durable or is asked of the kernel:
//
//	var beforeRename = failpoint.New("journal.compact.rename.before")
//
// The environment variable VMLOCKD_FAILPOINT=NAME:N makes the process send
// itself SIGKILL when it passes that point for the N-th time (1 if N is left
// out). It is read once, at the start. A point that nobody armed costs one load
// and one branch, so points are in every build and what is tested is what runs.
//
// All functions may be called from many goroutines.
package failpoint

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that arms a point.
const Variable = "VMLOCKD_FAILPOINT"

var (
	mu     sync.Mutex // guards points
	points = map[string]*Point{}

	wanted, wantedPass, wantedErr = parse(os.Getenv(Variable))
)

// Point is a place in the program with a name.
type Point struct {
	name   string
	action atomic.Pointer[func()]
}

// New declares a point. Names are unique in the program, dots separate the
// package, the step, and before or after; New panics if a name is taken.
func New(name string) *Point {
	mu.Lock()
	defer mu.Unlock()
	if points[name] != nil {
		panic("failpoint " + name + " is declared twice")
	}
	p := &Point{name: name}
	points[name] = p
	if wantedErr == nil && name == wanted {
		p.arm(wantedPass, kill)
	}
	return p
}

// Name is the name that New was given.
func (p *Point) Name() string { return p.name }

// Pass says that the program is at this point.
func (p *Point) Pass() {
	if f := p.action.Load(); f != nil {
		(*f)()
	}
}

// Armed reports whether passing may do something. Code that exists only to
// bring about a state that is hard to hit asks this first.
func (p *Point) Armed() bool { return p.action.Load() != nil }

// Arm makes the n-th pass from now on call f, and returns what takes that back.
// It is for tests inside one process.
func (p *Point) Arm(n int, f func()) (disarm func()) {
	p.arm(int64(n), f)
	return func() { p.action.Store(nil) }
}

func (p *Point) arm(n int64, f func()) {
	var passes atomic.Int64
	action := func() {
		if passes.Add(1) == n {
			f()
		}
	}
	p.action.Store(&action)
}

// Names lists the points of this program, sorted.
func Names() []string {
	mu.Lock()
	defer mu.Unlock()
	return slices.Sorted(maps.Keys(points))
}

// Find returns the point with this name, for tests of another package than the
// one that declares it; nil if there is none.
func Find(name string) *Point {
	mu.Lock()
	defer mu.Unlock()
	return points[name]
}

// Check returns what is armed through the environment ("" if nothing is), and
// an error if the variable cannot be understood or names no point: a crash test
// that never crashes proves nothing.
func Check() (string, error) {
	if wantedErr != nil || wanted == "" {
		return "", wantedErr
	}
	if !slices.Contains(Names(), wanted) {
		return "", fmt.Errorf("%s: there is no fail point %q", Variable, wanted)
	}
	return fmt.Sprintf("%s:%d", wanted, wantedPass), nil
}

func parse(v string) (name string, pass int64, err error) {
	name, count, ok := strings.Cut(v, ":")
	if !ok {
		return name, 1, nil
	}
	pass, err = strconv.ParseInt(count, 10, 64)
	if err != nil || pass < 1 || name == "" {
		return "", 0, fmt.Errorf("%s=%q: want NAME:N with N from 1", Variable, v)
	}
	return name, pass, nil
}

// kill does not return. The signal may reach another thread first, so this one
// must not go on to the step that it should not reach.
func kill() {
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {}
}
