package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

func locksOf(read func() locking.Counts) prometheus.Collector {
	type t = locking.Counts
	c := collect("locks", read)
	held := c.labeled(gauge, "vmlockd_locks_held", "Locks that owners on this host hold, by mode.", "mode")
	held(locking.Exclusive.String(), func(n t) float64 { return float64(n.Exclusive) })
	held(locking.Shared.String(), func(n t) float64 { return float64(n.Shared) })
	c.gauge("vmlockd_locks_lost", "Locks from before a restart that could not be taken back and whose owners have not ended: end these virtual machines.",
		func(n t) float64 { return float64(n.Lost) })
	c.gauge("vmlockd_owners", "Owners on this host, that is virtual machines, that hold at least one lock.", func(n t) float64 { return float64(n.Owners) })
	c.gauge("vmlockd_lockspaces", "Lockspaces of libvirt that exist, with the default one.", func(n t) float64 { return float64(n.Lockspaces) })
	return c
}

func clusterOf(read func() Cluster) prometheus.Collector {
	c := collect("cluster", read)
	c.gauge("vmlockd_lockspace_joined", "1 if this host is in the DLM lockspace.", func(n Cluster) float64 { return number(n.Joined) })
	c.gauge("vmlockd_lockspace_running", "1 if the DLM lockspace takes requests; locks are refused otherwise.", func(n Cluster) float64 { return number(n.Running) })
	c.gauge("vmlockd_lockspace_stopped_seconds", "How long the DLM lockspace has been stopped; 0 while it runs.", func(n Cluster) float64 { return n.Stopped.Seconds() })
	stopped := c.labeled(gauge, "vmlockd_lockspace_stopped", "1 for the cause for which the DLM lockspace does not run, 0 for all others.", "cause")
	for _, cause := range Causes[:clusterCauses] {
		stopped(cause, func(n Cluster) float64 { return number(n.Cause == cause) })
	}
	c.gauge("vmlockd_releases_pending", "Releases that are carried out when the DLM lockspace runs again.", func(n Cluster) float64 { return float64(n.Releasing) })
	c.gauge("vmlockd_owner_records_pending", "Locks whose holder is not in the lock yet, where other hosts read it: the holder is written a while after the grant, one lock after the other.",
		func(n Cluster) float64 { return float64(n.Unsaid) })
	heard := func(n Cluster) bool { return n.Heard }
	c.gauge("vmlockd_cluster_quorate", "1 if the cluster has quorum, as dlm_controld says; missing if it does not answer.",
		func(n Cluster) float64 { return number(n.Quorate) }).known = heard
	nodes := c.labeled(gauge, "vmlockd_cluster_nodes", "Nodes that run dlm_controld, and nodes that did since it was started on this host and do not now; missing if it does not answer.", "state")
	nodes("member", func(n Cluster) float64 { return float64(n.Members) }).known = heard
	nodes("missing", func(n Cluster) float64 { return float64(n.Missing) }).known = heard
	c.gauge("vmlockd_cluster_nodes_to_fence", "Nodes that have to be fenced before the DLM goes on; missing if dlm_controld does not answer.",
		func(n Cluster) float64 { return float64(n.Fencing) }).known = heard
	return c
}

// clusterCauses is how many of Causes, from the first, are about the lockspace.
const clusterCauses = 7

func kernelOf(read func() Kernel) prometheus.Collector {
	c := collect("kernel", read)
	c.gauge("vmlockd_kernel_calls_in_flight", "Requests that the kernel, or a file system, has not answered.", func(n Kernel) float64 { return float64(n.InFlight) })
	c.gauge("vmlockd_kernel_calls_queued", "Requests that wait until fewer are in flight.", func(n Kernel) float64 { return float64(n.Queued) })
	c.gauge("vmlockd_kernel_oldest_call_seconds", "Age of the oldest request to the DLM that the kernel has not answered (backend cluster), "+
		"or of the oldest access to a file that hangs and was given up (backend local); 0 if there is none.", func(n Kernel) float64 { return n.Oldest.Seconds() })
	c.gauge("vmlockd_kernel_calls_unsettled", "Requests that were given up and whose outcome the kernel has not told; what they bring about is undone then.",
		func(n Kernel) float64 { return float64(n.Unsettled) })
	return c
}

func holderOf(read func() Holder) prometheus.Collector {
	c := collect("holder", read)
	c.gauge("vmlockd_holder_up", "1 if the process that keeps locked files open across restarts is there; without it nothing is granted.", func(n Holder) float64 { return number(n.Up) })
	c.gauge("vmlockd_holder_files", "Files that it keeps open.", func(n Holder) float64 { return float64(n.Held) })
	c.gauge("vmlockd_holder_files_missing", "Files that it should keep open and does not: their locks would not survive the daemon.", func(n Holder) float64 { return float64(n.Unkept) })
	return c
}

func journalOf(read func() Journal) prometheus.Collector {
	c := collect("journal", read)
	c.gauge("vmlockd_journal_entries", "Locks that the journal knows of.", func(n Journal) float64 { return float64(n.Entries) })
	c.gauge("vmlockd_journal_size_bytes", "Size of the journal.", func(n Journal) float64 { return float64(n.Bytes) })
	c.gauge("vmlockd_journal_live_bytes", "Size that it would have after a compaction.", func(n Journal) float64 { return float64(n.LiveBytes) })
	c.counter("vmlockd_journal_records_total", "Records written since the start.", func(n Journal) float64 { return float64(n.Records) })
	c.counter("vmlockd_journal_compactions_total", "Compactions since the start.", func(n Journal) float64 { return float64(n.Compactions) })
	c.counter("vmlockd_journal_failures_total", "Writes and compactions that failed since the start; what cannot be written is not granted.", func(n Journal) float64 { return float64(n.Failures) })
	return c
}

func connectionsOf(read func() Connections) prometheus.Collector {
	c := collect("connections", read)
	c.gauge("vmlockd_connections", "Open connections of libvirt and of virtual machines.", func(n Connections) float64 { return float64(n.Open) })
	c.gauge("vmlockd_connections_limit", "How many there may be (max_clients, or what virt-admin has set); more can only release.", func(n Connections) float64 { return float64(n.Limit) })
	c.counter("vmlockd_connections_refused_total", "Connections of other users, which are not served.", func(n Connections) float64 { return float64(n.Refused) })
	c.counter("vmlockd_connections_failed_total", "Connections that could not be accepted, most likely as descriptors had run out.", func(n Connections) float64 { return float64(n.Failures) })
	return c
}

func peersOf(read func() Peers) prometheus.Collector {
	c := collect("peers", read)
	c.gauge("vmlockd_peers", "Other hosts that run vmlockd.", func(n Peers) float64 { return float64(n.Members) })
	c.gauge("vmlockd_peers_silent", "Those of them that have not answered lately.", func(n Peers) float64 { return float64(n.Silent) })
	return c
}

func startsOf(read func() Starts) prometheus.Collector {
	c := collect("starts", read)
	starts := c.labeled(counter, "vmlockd_starts_total", "Starts of the daemon since the host's boot: fresh (it was stopped, or had not run), "+
		"crash (it was killed or crashed), in_place (SIGUSR1 or reload).", "how")
	starts("fresh", func(n Starts) float64 { return float64(n.Fresh) })
	starts("crash", func(n Starts) float64 { return float64(n.Crash) })
	starts("in_place", func(n Starts) float64 { return float64(n.InPlace) })
	return c
}

func logOf(read func() Log) prometheus.Collector {
	c := collect("log", read)
	c.counter("vmlockd_log_dropped_total", "Records of the log that were lost since the start, as journald, or who else reads the log, did not take them in time.",
		func(n Log) float64 { return float64(n.Dropped) })
	return c
}
