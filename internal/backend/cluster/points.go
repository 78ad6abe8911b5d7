package cluster

import "github.com/vmlockd/vmlockd/internal/failpoint"

// The fail points before and after each request to the kernel. "After" is before
// the caller knows.
var (
	beforeLock   = failpoint.New("cluster.lock.before")
	afterLock    = failpoint.New("cluster.lock.after")
	beforeUnlock = failpoint.New("cluster.unlock.before")
	afterUnlock  = failpoint.New("cluster.unlock.after")
	beforeAdopt  = failpoint.New("cluster.adopt.before")
	afterAdopt   = failpoint.New("cluster.adopt.after")

	beforeHandover = failpoint.New("cluster.handover.before")
	afterHandover  = failpoint.New("cluster.handover.after")
	beforeResume   = failpoint.New("cluster.resume.before")
	afterResume    = failpoint.New("cluster.resume.after")
	beforePublish  = failpoint.New("cluster.publish.before")
	afterPublish   = failpoint.New("cluster.publish.after")
)
