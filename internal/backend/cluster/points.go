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
	beforeLateEnd   = failpoint.New("cluster.lateend.before")
	afterLateEnd    = failpoint.New("cluster.lateend.after")
	beforeAdoptDue  = failpoint.New("cluster.adoptdue.before")
	afterAdoptDue   = failpoint.New("cluster.adoptdue.after")
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
	beforeProve    = failpoint.New("cluster.prove.before")
	afterProve     = failpoint.New("cluster.prove.after")

	// The locks of a moment, to ask or to read, and the ends of them.
	beforeAsk     = failpoint.New("cluster.ask.before")
	afterAsk      = failpoint.New("cluster.ask.after")
	beforeAskEnd  = failpoint.New("cluster.askend.before")
	afterAskEnd   = failpoint.New("cluster.askend.after")
	beforeRead    = failpoint.New("cluster.read.before")
	afterRead     = failpoint.New("cluster.read.after")
	beforeReadEnd = failpoint.New("cluster.readend.before")
	afterReadEnd  = failpoint.New("cluster.readend.after")

	// What an operator settles: a lock that was handed over and nothing explains, and the
	// orphans.
	beforeDrop  = failpoint.New("cluster.drop.before")
	afterDrop   = failpoint.New("cluster.drop.after")
	beforePurge = failpoint.New("cluster.purge.before")
	afterPurge  = failpoint.New("cluster.purge.after")
)
