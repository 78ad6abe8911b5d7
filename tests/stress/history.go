package stress

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Kind is what somebody did to a resource.
type Kind uint8

// The kinds of Op.
const (
	Acquire Kind = iota
	Release
	Death // the owner's process was killed; at some moment between Call and Return everything it had became free
)

// Answer is how that ended.
type Answer uint8

// The answers.
const (
	Done      Answer = iota // it has it, or no longer has it
	Busy                    // to Acquire: somebody has it in a mode that does not go together with this one
	NotLocked               // to Release: nobody on this node has it
	NotOwner                // to Release: somebody on this node has it, the caller not
	OwnerGone               // to Acquire: the owner's process has ended; it may have had the lock for a moment
	TimedOut                // it may have happened, also later; what an Acquire got is taken back
	Unknown                 // no answer: it may have happened, also later
)

var (
	kindNames   = [...]string{"acquire", "release", "death", "taken back", "settled"}
	answerNames = [...]string{"done", "busy", "not locked", "not the owner", "owner gone", "timed out", "unknown"}
)

func (k Kind) String() string   { return kindNames[k] }
func (a Answer) String() string { return answerNames[a] }

// Op is one operation on one resource.
type Op struct {
	Resource     int
	Kind         Kind
	Mode         locking.Mode // of Acquire
	Owner        int          // place in History.Owners
	Answer       Answer
	Call, Return time.Duration // since the history began
	Text         string        // of a refusal, for people
}

// never is the Return of an operation that nobody knows to have ended.
const never = time.Duration(math.MaxInt64)

func (o Op) String() string {
	what := o.Kind.String()
	if o.Kind == Acquire {
		what += " " + o.Mode.String()
	}
	until := "..."
	if o.Return != never {
		until = fmt.Sprintf("%.3f", o.Return.Seconds()*1000)
	}
	s := fmt.Sprintf("[%.3f, %s] ms: owner %d: %s -> %s", o.Call.Seconds()*1000, until, o.Owner, what, o.Answer)
	if o.Text != "" {
		s += " (" + o.Text + ")"
	}
	return s
}

// pending says that it may still happen after Return.
func (o Op) pending() bool {
	return o.Answer == Unknown || o.Answer == TimedOut || o.Answer == OwnerGone
}

// Owner is a process that owned locks.
type Owner struct {
	Node   int
	PID    int32
	Killed time.Duration // when killing it began; never if it was not
}

// Outage is the end of a node's daemon and the start of the next one.
type Outage struct {
	Node int
	// From is when ending it began, and Until when the next one served; never if
	// nobody saw that.
	From, Until time.Duration
}

// History is what was done and answered. Run fills it.
type History struct {
	start time.Time

	mu      sync.Mutex // guards what follows while Run runs
	Owners  []Owner
	Ops     []Op
	Outages []Outage
}

func newHistory() *History { return &History{start: time.Now()} }

func (h *History) now() time.Duration { return time.Since(h.start) }

func (h *History) addOwner(node int, pid int32) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Owners = append(h.Owners, Owner{Node: node, PID: pid, Killed: never})
	return len(h.Owners) - 1
}

func (h *History) killed(owner int, at time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Owners[owner].Killed = at
}

// killedAt is when killing the owner began.
func (h *History) killedAt(owner int) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.Owners[owner].Killed
}

func (h *History) add(o Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Ops = append(h.Ops, o)
}

func (h *History) addOutage(o Outage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Outages = append(h.Outages, o)
}

// Summary counts operations by kind and answer.
func (h *History) Summary() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var n [len(kindNames)][len(answerNames)]int
	for _, o := range h.Ops {
		n[o.Kind][o.Answer]++
	}
	s := fmt.Sprintf("%d operations of %d owners:", len(h.Ops), len(h.Owners))
	for k := range n {
		for a := range n[k] {
			if n[k][a] > 0 {
				s += fmt.Sprintf(" %s %s %d,", Kind(k), Answer(a), n[k][a])
			}
		}
	}
	if n := len(h.Outages); n > 0 {
		s += fmt.Sprintf(" %d ends of a daemon,", n)
	}
	return s[:len(s)-1]
}
