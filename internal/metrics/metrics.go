// Package metrics counts what happens to locks and shows it, with what other
// parts know, to Prometheus. It is the only place that imports Prometheus.
//
// What it promises:
//
//   - Observe takes less than a microsecond, allocates nothing for a grant or a
//     release, and waits for nobody.
//   - A scrape waits for no part of the daemon for longer than partPatience: of
//     one that does not answer it shows the last figures, and says so.
//   - No value of a label comes from a client: the number of series is fixed.
//   - Nothing tells names of virtual machines or disks.
//
// Metrics may be used from many goroutines.
package metrics

import (
	"errors"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Causes are the words of locking.Cause that have a series of their own; others
// are counted as "other".
var Causes = []string{
	"recovering", "quorum", "fencing", "merge", "controld_silent", "controld_gone", "hold_off", "guard_lost", "guard_start", "guard_unsafe", "joining",
	"draining", "timeout", "lost", "journal", "stopping",
}

// What a request was refused for, other than a cause.
const (
	reasonHere        = "busy_here"
	reasonElsewhere   = "busy_elsewhere"
	reasonInvalid     = "invalid"
	reasonNoLockspace = "no_lockspace"
	reasonOwnerGone   = "owner_gone"
	reasonSystem      = "system"
	reasonOther       = "other"
	reasonUnavailable = "unavailable_" // and a cause
)

// buckets are the bounds of latencies in seconds: a lock of this host that needs
// nobody else takes about 50 us, and nothing takes longer than request_timeout,
// which is 10 s unless somebody changes it.
var buckets = []float64{
	50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3,
	100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10,
}

const (
	// scrapeTimeout bounds a scrape, also that of Go's and the process's figures.
	scrapeTimeout = 10 * time.Second
	// maxScrapes is how many may go on at once; more are refused.
	maxScrapes = 4
)

// Options say what is shown. A port that is nil is left out.
type Options struct {
	Version string // of the program
	Backend string // "local" or "cluster"
	Ports   Ports
}

// Metrics is a set of metrics of one daemon.
type Metrics struct {
	registry *prometheus.Registry
	handler  http.Handler

	grants       [2]prometheus.Counter // by locking.Mode
	refusals     map[string]prometheus.Counter
	unavailable  map[string]prometheus.Counter // by cause
	acquire      prometheus.Observer           // that was granted
	acquireNot   prometheus.Observer
	release      prometheus.Observer
	releases     [4]prometheus.Counter
	notReleased  prometheus.Counter
	takenBack    prometheus.Counter
	takenAgain   [2]prometheus.Counter // whether it was
	lost         prometheus.Counter
	ownerDeaths  prometheus.Counter
	ownerEnding  prometheus.Counter
	ownerStays   prometheus.Counter
	ownersUnseen prometheus.Counter
}

// Places in Metrics.releases.
const (
	byOwner = iota
	ofGone
	untold
	forced
)

// New makes Metrics that have counted nothing.
func New(o Options) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), refusals: map[string]prometheus.Counter{}, unavailable: map[string]prometheus.Counter{}}
	m.makeCounters()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "vmlockd_build_info", Help: "Always 1; the labels say what runs here.",
		ConstLabels: prometheus.Labels{"version": o.Version, "goversion": runtime.Version(), "backend": o.Backend},
	})
	info.Set(1)
	m.registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range o.Ports.collectors() {
		m.registry.MustRegister(c)
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	})
	return m
}

func (m *Metrics) makeCounters() {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		m.registry.MustRegister(c)
		return c
	}
	grants := vec("vmlockd_lock_grants_total", "Locks that were granted, by mode.", "mode")
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		m.grants[mode] = grants.WithLabelValues(mode.String())
	}
	refusals := vec("vmlockd_lock_refusals_total",
		"Requests for a lock that were refused, by reason: busy_here and busy_elsewhere are the conflicts that vmlockd is for, "+
			"unavailable_* means that it could not grant anything.", "reason")
	for _, reason := range []string{reasonHere, reasonElsewhere, reasonInvalid, reasonNoLockspace, reasonOwnerGone, reasonSystem, reasonOther} {
		m.refusals[reason] = refusals.WithLabelValues(reason)
	}
	for _, cause := range append([]string{reasonOther}, Causes...) {
		m.unavailable[cause] = refusals.WithLabelValues(reasonUnavailable + cause)
	}
	acquire := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "vmlockd_lock_acquire_duration_seconds", Buckets: buckets,
		Help: "How long requests for a lock took until they were granted or refused.",
	}, []string{"result"})
	release := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "vmlockd_lock_release_duration_seconds", Buckets: buckets,
		Help: "How long it took to give a lock back.",
	})
	m.registry.MustRegister(acquire, release)
	m.acquire, m.acquireNot, m.release = acquire.WithLabelValues("granted"), acquire.WithLabelValues("refused"), release
	releases := vec("vmlockd_lock_releases_total",
		"Locks that were released, by why: their owner asked, it has ended, no client was told of them before a restart, or an operator forced it.", "kind")
	for at, kind := range []string{byOwner: "owner", ofGone: "owner_gone", untold: "untold", forced: "forced"} {
		m.releases[at] = releases.WithLabelValues(kind)
	}
	m.notReleased = counter("vmlockd_lock_release_failures_total", "Releases that the backend did not carry out; the lock stays held.")
	restored := vec("vmlockd_locks_restored_total", "Locks from before a restart, by what came of them: a lost one keeps its disk locked until its owner ends.", "result")
	m.takenBack, m.lost = restored.WithLabelValues("taken_back"), restored.WithLabelValues("lost")
	again := vec("vmlockd_forgotten_locks_total", "Locks of virtual machines that run that libvirt had given back and not asked for again, by what came of them: if one is not taken again two virtual machines may write one disk.", "result")
	m.takenAgain = [2]prometheus.Counter{again.WithLabelValues("taken_again"), again.WithLabelValues("not_taken_again")}
	m.ownerDeaths = counter("vmlockd_owner_deaths_total", "Owners with locks whose process has ended.")
	m.ownerEnding = counter("vmlockd_owner_endings_total", "Owners that were ended because they closed their connection while they held locks.")
	m.ownerStays = counter("vmlockd_owner_ending_failures_total", "Owners that could not be ended; they keep their locks.")
	m.ownersUnseen = counter("vmlockd_owners_unverified_total", "Owners whose process could not be looked at: their death would not be noticed.")
}

// Observe counts an event.
func (m *Metrics) Observe(e locking.Event) {
	switch e.Kind {
	case locking.Granted:
		m.grants[e.Mode&1].Inc()
		m.acquire.Observe(e.Took.Seconds())
	case locking.Refused:
		m.refusal(e.Err).Inc()
		m.acquireNot.Observe(e.Took.Seconds())
	case locking.Released:
		m.released(byOwner, e)
	case locking.ReleasedGone:
		m.released(ofGone, e)
	case locking.Forced:
		m.released(forced, e)
	case locking.ReleasedUntold:
		m.releases[untold].Inc()
	case locking.ReleaseFailed:
		m.notReleased.Inc()
	case locking.TakenBack:
		m.takenBack.Inc()
	case locking.Lost:
		m.lost.Inc()
	case locking.TakenAgain:
		m.takenAgain[0].Inc()
	case locking.NotTakenAgain:
		m.takenAgain[1].Inc()
	case locking.OwnerGone:
		m.ownerDeaths.Inc()
	case locking.OwnerEnding:
		m.ownerEnding.Inc()
	case locking.OwnerEndFailed:
		m.ownerStays.Inc()
	case locking.OwnerUnverified:
		m.ownersUnseen.Inc()
	}
}

func (m *Metrics) released(how int, e locking.Event) {
	m.releases[how].Inc()
	m.release.Observe(e.Took.Seconds())
}

// refusal is the counter for why a request was refused.
func (m *Metrics) refusal(err error) prometheus.Counter {
	reason := reasonOther
	if e, ok := errors.AsType[*locking.Error](err); ok {
		switch e.Kind {
		case locking.KindBusy:
			reason = reasonHere
			if errors.Is(e.Err, locking.ErrBusy) {
				reason = reasonElsewhere
			}
		case locking.KindUnavailable:
			if c, ok := m.unavailable[locking.Cause(err)]; ok {
				return c
			}
			return m.unavailable[reasonOther]
		case locking.KindInvalid:
			reason = reasonInvalid
		case locking.KindNoLockspace:
			reason = reasonNoLockspace
		case locking.KindOwnerGone:
			reason = reasonOwnerGone
		case locking.KindSystem:
			reason = reasonSystem
		}
	}
	return m.refusals[reason]
}

// Handler answers GET with all metrics, in the format that the client asks for.
func (m *Metrics) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "metrics can only be read: use GET", http.StatusMethodNotAllowed)
			return
		}
		m.handler.ServeHTTP(w, r)
	})
}
