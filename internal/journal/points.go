package journal

import "github.com/vmlockd/vmlockd/internal/failpoint"

// steps are the fail points before and after a durable step.
type step struct{ before, after *failpoint.Point }

func newStep(name string) step {
	return step{failpoint.New("journal." + name + ".before"), failpoint.New("journal." + name + ".after")}
}

// The durable steps. "After" is before the caller knows.
var (
	stepIntend    = newStep("intend")
	stepGrant     = newStep("grant")
	stepReleasing = newStep("releasing")
	stepForget    = newStep("forget")
	stepLockspace = newStep("lockspace")
	stepSettled   = newStep("settled")
	stepSuspect   = newStep("suspect")

	// pointTorn is passed when the first half of a record is in the file.
	pointTorn = failpoint.New("journal.append.half")

	stepCreate = newStep("fresh.create")  // a fresh file, empty as yet, beside the old one
	stepFill   = newStep("fresh.fill")    // its content
	stepRename = newStep("fresh.rename")  // it takes the old one's place
	stepAside  = newStep("open.aside")    // a second name for a damaged file
	stepCut    = newStep("open.truncate") // a record that was cut short is removed
)
