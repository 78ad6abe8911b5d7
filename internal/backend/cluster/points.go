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

	beforeAdoptOne  = failpoint.New("cluster.adoptone.before")
	afterAdoptOne   = failpoint.New("cluster.adoptone.after")
	beforeAdoptLate = failpoint.New("cluster.adoptlate.before")
	afterAdoptLate  = failpoint.New("cluster.adoptlate.after")
	beforeJoin      = failpoint.New("cluster.join.before")
	afterJoin       = failpoint.New("cluster.join.after")
	beforeClose     = failpoint.New("cluster.close.before")
	afterClose      = failpoint.New("cluster.close.after")
	beforeLeave     = failpoint.New("cluster.leave.before")
	afterLeave      = failpoint.New("cluster.leave.after")

	beforeHandover = failpoint.New("cluster.handover.before")
	afterHandover  = failpoint.New("cluster.handover.after")
	beforeResume   = failpoint.New("cluster.resume.before")
	afterResume    = failpoint.New("cluster.resume.after")
	beforePublish  = failpoint.New("cluster.publish.before")
	afterPublish   = failpoint.New("cluster.publish.after")
)
