package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Ports are where figures of other parts come from. They are called once for each
// scrape, never twice at a time, and should answer from memory.
type Ports struct {
	Locks       func() locking.Counts
	Cluster     func() Cluster
	Kernel      func() Kernel
	Holder      func() Holder
	Journal     func() Journal
	Connections func() Connections
	Peers       func() Peers
	Starts      func() Starts
	Log         func() Log
}

// Cluster is what this host knows of its lockspace and of the cluster.
type Cluster struct {
	Joined, Running bool
	Cause           string        // why it does not run; one of Causes
	Stopped         time.Duration // for how long
	Releasing       int           // releases that wait until it runs
	Unsaid          int           // locks whose holders other hosts cannot read yet

	Heard                     bool // the rest is known
	Quorate                   bool
	Members, Missing, Fencing int // nodes
}

// Kernel is the calls that the backend has made to the kernel, or to the file
// system.
type Kernel struct {
	InFlight, Queued int
	Oldest           time.Duration // since the oldest of them that is not answered; 0 if there is none
	Unsettled        int           // given up by the one who asked, outcome unknown
}

// Holder is the process that keeps locked files open, of the local backend.
type Holder struct {
	Up           bool
	Held, Unkept int // descriptors that it has, and those that it should have and has not
}

// Journal is the journal of what must survive the daemon.
type Journal struct {
	Entries                        int
	Bytes, LiveBytes               int64
	Records, Compactions, Failures uint64 // since the start
}

// Connections are those of libvirt.
type Connections struct {
	Open, Limit int
	Refused     uint64 // since the start: of other users
	Failures    uint64 // since the start: that could not be accepted
}

// Peers are the daemons of other hosts.
type Peers struct {
	Members int // that are in the group
	Silent  int // those of them that have not answered lately
}

// Starts counts the starts since the host's boot, this one included.
type Starts struct {
	Fresh   uint64 // after a stop in order, or the first
	Crash   uint64 // after the daemon was killed or has crashed
	InPlace uint64 // by executing the program again
}

// Log is the daemon's own log.
type Log struct {
	Dropped uint64 // records since the start that could not be written in time
}

// collectors makes one for each port that there is.
func (p Ports) collectors() (list []prometheus.Collector) {
	if p.Locks != nil {
		list = append(list, locksOf(p.Locks))
	}
	if p.Cluster != nil {
		list = append(list, clusterOf(p.Cluster))
	}
	if p.Kernel != nil {
		list = append(list, kernelOf(p.Kernel))
	}
	if p.Holder != nil {
		list = append(list, holderOf(p.Holder))
	}
	if p.Journal != nil {
		list = append(list, journalOf(p.Journal))
	}
	if p.Connections != nil {
		list = append(list, connectionsOf(p.Connections))
	}
	if p.Peers != nil {
		list = append(list, peersOf(p.Peers))
	}
	if p.Starts != nil {
		list = append(list, startsOf(p.Starts))
	}
	if p.Log != nil {
		list = append(list, logOf(p.Log))
	}
	return list
}

// figure is a metric that is made of the figures T of a part.
type figure[T any] struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	value  func(T) float64
	labels []string // values
	known  func(T) bool
}

// collector shows the figures of one part.
type collector[T any] struct {
	part    part[T]
	stale   *prometheus.Desc
	figures []figure[T]
}

func collect[T any](name string, read func() T) *collector[T] {
	return &collector[T]{part: part[T]{read: read}, stale: prometheus.NewDesc("vmlockd_scrape_stale",
		"1 if this part of the daemon did not answer the scrape, so that its figures are missing or old.", nil, prometheus.Labels{"part": name})}
}

func (c *collector[T]) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.stale
	var last *prometheus.Desc
	for _, f := range c.figures {
		if f.desc != last {
			descs <- f.desc
		}
		last = f.desc
	}
}

func (c *collector[T]) Collect(metrics chan<- prometheus.Metric) {
	t, ok, fresh := c.part.get()
	metrics <- prometheus.MustNewConstMetric(c.stale, prometheus.GaugeValue, number(!fresh))
	if !ok {
		return
	}
	for _, f := range c.figures {
		if f.known == nil || f.known(t) {
			metrics <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(t), f.labels...)
		}
	}
}

func (c *collector[T]) gauge(name, help string, value func(T) float64) *figure[T] {
	c.figures = append(c.figures, figure[T]{desc: prometheus.NewDesc(name, help, nil, nil), kind: prometheus.GaugeValue, value: value})
	return &c.figures[len(c.figures)-1]
}

func (c *collector[T]) counter(name, help string, value func(T) float64) {
	c.gauge(name, help, value).kind = prometheus.CounterValue
}

// labeled is for metrics that differ in one label: add gives each its value.
func (c *collector[T]) labeled(kind prometheus.ValueType, name, help, label string) (add func(is string, value func(T) float64) *figure[T]) {
	desc := prometheus.NewDesc(name, help, []string{label}, nil)
	return func(is string, value func(T) float64) *figure[T] {
		c.figures = append(c.figures, figure[T]{desc: desc, kind: kind, value: value, labels: []string{is}})
		return &c.figures[len(c.figures)-1]
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
