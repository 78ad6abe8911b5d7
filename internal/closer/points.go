package closer

import "github.com/vmlockd/vmlockd/internal/failpoint"

// The fail points of the daemon, before and after it starts and ends a closer.
var (
	beforeStart = failpoint.New("closer.start.before")
	afterStart  = failpoint.New("closer.start.after")
	beforeEnd   = failpoint.New("closer.end.before")
	afterEnd    = failpoint.New("closer.end.after")
)
