package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/config"
)

// Severity says how bad a finding is.
type Severity string

// The severities, worst first.
const (
	Fault     Severity = "fault"     // disks are not protected, or virtual machines cannot start
	Warning   Severity = "warning"   // it works, until something else happens
	Unchecked Severity = "unchecked" // it could not be looked at
)

// Finding is one thing that is wrong.
type Finding struct {
	ID       string   `json:"id"` // one of Catalogue
	Severity Severity `json:"severity"`
	Where    string   `json:"where"`  // a file with its line, a process, a virtual machine
	What     string   `json:"what"`   // what is wrong there, and what follows from it
	Remedy   string   `json:"remedy"` // a command, or a line of a configuration file
}

// Report is what was found, worst first.
type Report struct {
	Backend  string    `json:"backend"` // "local" or "cluster": which checks were made
	Findings []Finding `json:"findings"`
}

// Count is how many findings have a severity.
func (r Report) Count(s Severity) (n int) {
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Controld is what is asked of dlm_controld; a controld.Client has it. The first three
// questions are safe in a program that may be killed, the others only with a dlm_controld that
// ignores SIGPIPE.
type Controld interface {
	Status(context.Context) (controld.Status, error)
	Config(context.Context) (controld.Config, error)
	Known(ctx context.Context, lockspace string) error

	Lockspace(ctx context.Context, name string) (controld.Lockspace, error)
	Nodes(ctx context.Context, lockspace string, of controld.NodesOf) ([]controld.Node, error)
}

// Options is what Examine looks at and asks.
type Options struct {
	System   System
	Controld Controld
	// Daemon asks vmlockd. An error means that it did not answer, or if it is
	// fs.ErrPermission that the asker may not.
	Daemon func(context.Context) (Daemon, error)
	// Identify asks vmlockd which disk a path is; nil if it cannot be asked.
	Identify func(ctx context.Context, path string) (Identity, error)
	// Config is the path of vmlockd's configuration file; it need not exist unless
	// ConfigNamed.
	Config      string
	ConfigNamed bool
	// Pause is how long what may be so for a moment only has to stay before it is told. 0 is a good value, for 2 seconds.
	Pause time.Duration
}

// momentary is what Options.Pause is by default. A change of a lockspace in a cluster that is well takes some
// milliseconds from the moment on at which its conditions are met.
const momentary = 2 * time.Second

// maxOfOne bounds how many findings of one id are told one by one.
const maxOfOne = 20

// exam is one examination: what the checks have in common.
type exam struct {
	Options
	ctx      context.Context
	cfg      config.Config
	cfgOK    bool // the configuration was understood
	backend  string
	procs    []process
	procsErr error
	daemon   Daemon
	silent   error // why daemon is empty
	libvirt  lockdConf
	disks    map[string]Identity // by path, as far as vmlockd was asked
	findings []Finding
	counts   map[string]int
}

// Examine looks at everything. It returns soon after ctx ends, with what is known
// then.
func Examine(ctx context.Context, o Options) Report {
	x := &exam{Options: o, ctx: ctx, counts: map[string]int{}, disks: map[string]Identity{}}
	x.procs, x.procsErr = processes(o.System)
	if x.procsErr != nil {
		x.unchecked("/proc", x.procsErr, "which programs run on this host")
	}
	x.daemon, x.silent = o.Daemon(ctx)
	x.configuration()
	x.lockDaemon()
	x.runDir()
	x.watchdogStays()
	x.units()
	if x.backend == config.BackendCluster {
		x.cluster()
	}
	x.libvirtConfiguration()
	x.virtualMachines()
	x.trim()
	slices.SortStableFunc(x.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), cmp.Compare(order(a.ID), order(b.ID)))
	})
	return Report{Backend: x.backend, Findings: x.findings}
}

func rank(s Severity) int { return slices.Index([]Severity{Fault, Warning, Unchecked}, s) }

// find reports what is wrong. The id is one of Catalogue, which has its severity.
func (x *exam) find(id, where, remedy, format string, args ...any) {
	x.counts[id]++
	if x.counts[id] > maxOfOne {
		return
	}
	x.findings = append(x.findings, Finding{
		ID: id, Severity: kindOf(id).Severity, Where: clip(where, 300), What: clip(fmt.Sprintf(format, args...), 2000), Remedy: clip(remedy, 1000),
	})
}

// trim says how much more there is of ids that were found too often.
func (x *exam) trim() {
	for id, n := range x.counts {
		if n > maxOfOne {
			x.findings = append(x.findings, Finding{
				ID: id, Severity: kindOf(id).Severity, Where: "elsewhere", What: fmt.Sprintf("the same in %d more places", n-maxOfOne),
				Remedy: "correct these first, then run doctor again",
			})
		}
	}
	if x.findings == nil {
		x.findings = []Finding{}
	}
}

// unchecked reports that something could not be looked at.
func (x *exam) unchecked(where string, err error, what string) {
	remedy := "run doctor again when that is settled"
	if errors.Is(err, errPermission) {
		remedy = "run doctor as root"
	}
	x.find(idUnchecked, where, remedy, "could not check %s: %v", what, err)
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
