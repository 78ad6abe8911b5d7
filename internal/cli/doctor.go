package cli

import (
	"context"
	"fmt"
	"io/fs"
	"net/url"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/doctor"
)

// doctorTimeout bounds an examination; what has not answered by then is reported
// as such.
const doctorTimeout = 30 * time.Second

// daemonTimeout bounds each question of doctor to the daemon, which answers in
// about a second.
const daemonTimeout = 3 * time.Second

// examination is what doctor writes as JSON.
type examination struct {
	doctor.Report
	Faults    int `json:"faults"`
	Warnings  int `json:"warnings"`
	Unchecked int `json:"unchecked"`
}

// doctorExits are those of doctor.
var doctorExits = map[int]string{
	exitOK: "nothing is wrong", exitFailed: exits[exitFailed], exitUsage: exits[exitUsage],
	exitWarnings: exits[exitWarnings], exitFaults: exits[exitFaults], exitInterrupted: exits[exitInterrupted],
}

func (a *app) doctorCommand() *cobra.Command {
	var list bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong on this host, where, and what to do about it",
		Long: `Say what is wrong on this host, where, and what to do about it: from the kernel's
module over corosync, dlm_controld, fencing and vmlockd to the configuration of
libvirt and the disks of virtual machines. It changes nothing, and works also
while vmlockd does not run.

A fault means that disks are not protected or that virtual machines cannot start;
a warning, that it works until something else happens. What could not be looked at
is said, too. Each finding has a name that stays the same in later versions, for
scripts; --list shows all of them.

` + exitHelp(doctorExits),
		Example: "  vmlockctl doctor || mail -s \"$(hostname)\" root\n  vmlockctl doctor --json | jq -r '.findings[].id'",
		Args:    cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			if list {
				a.show(doctor.Catalogue(), func(p *page) { p.catalogue(doctor.Catalogue()) })
				return
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			e, err := a.examine(ctx)
			if err != nil {
				a.fail(err)
				return
			}
			a.report(e)
		},
	}
	cmd.Flags().BoolVar(&list, "list", false, "list all that can be found, and examine nothing")
	return cmd
}

// report shows what was found, and sets the exit status.
func (a *app) report(e examination) {
	a.show(e, func(p *page) { p.examination(e) })
	switch {
	case e.Faults > 0:
		a.status = exitFaults
	case e.Warnings+e.Unchecked > 0:
		a.status = exitWarnings
	}
}

func (a *app) examine(ctx context.Context) (examination, error) {
	limited, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	c, err := a.client()
	if err != nil {
		// A mistake in the configuration is a finding. Where the daemon listens is then
		// a guess.
		c = control.NewClient(config.Default().ControlSocket)
	}
	defer c.Close()
	r := doctor.Examine(limited, doctor.Options{
		System: doctor.Host(), Controld: controld.Host(), Config: a.config, ConfigNamed: a.named,
		Daemon:   func(ctx context.Context) (doctor.Daemon, error) { return askDaemon(ctx, c) },
		Identify: func(ctx context.Context, path string) (doctor.Identity, error) { return askIdentity(ctx, c, path) },
	})
	if ctx.Err() != nil {
		return examination{}, ctx.Err()
	}
	return examinationOf(r), nil
}

func examinationOf(r doctor.Report) examination {
	return examination{r, r.Count(doctor.Fault), r.Count(doctor.Warning), r.Count(doctor.Unchecked)}
}

// silenceQuestions is how many questions in a row a host must have left without an
// answer for doctor to call it silent: a busy host misses one now and then.
const silenceQuestions = 4

// daemonAnswers is what doctor asks vmlockd.
type daemonAnswers interface {
	Status(ctx context.Context) (control.Status, error)
	Holders(ctx context.Context, q url.Values) (control.Holders, error)
}

// askDaemon asks vmlockd for what doctor compares with the host.
func askDaemon(ctx context.Context, c daemonAnswers) (doctor.Daemon, error) {
	st, err := statusOf(ctx, c)
	if err != nil {
		return doctor.Daemon{}, err
	}
	q := url.Values{}
	if st.Cluster != nil {
		q.Set("cluster", "true")
	}
	for n := 1; ; n++ {
		// In a cluster all hosts are asked for it, and one that answers is not silent any more.
		held, err := askSoon(ctx, func(ctx context.Context) (control.Holders, error) { return c.Holders(ctx, q) })
		if err != nil {
			return doctor.Daemon{}, err
		}
		if n == silenceQuestions || !slices.ContainsFunc(st.Members, func(m control.Member) bool { return m.Silent }) {
			return daemonOf(st, held), nil
		}
		if st, err = statusOf(ctx, c); err != nil {
			return doctor.Daemon{}, err
		}
	}
}

func statusOf(ctx context.Context, c daemonAnswers) (control.Status, error) {
	st, err := askSoon(ctx, c.Status)
	if code(err) == control.CodeForbidden {
		err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	return st, err
}

// askIdentity asks vmlockd which disk a path is.
func askIdentity(ctx context.Context, c *control.Client, path string) (doctor.Identity, error) {
	a, err := askSoon(ctx, func(ctx context.Context) (control.Identified, error) { return c.Identify(ctx, path, false) })
	if err != nil || len(a.Disks) == 0 {
		return doctor.Identity{}, err
	}
	return identityOf(a.Disks[0]), nil
}

func identityOf(d control.Disk) doctor.Identity {
	return doctor.Identity{Type: d.Type, Name: d.Name, Private: d.Scope == control.ScopeHost, ByPath: d.ByPath, Doubt: d.Doubt, Error: d.Error}
}

func askSoon[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, daemonTimeout, fmt.Errorf("there was no answer within %v", daemonTimeout))
	defer cancel()
	return f(ctx)
}

func daemonOf(st control.Status, held control.Holders) doctor.Daemon {
	d := doctor.Daemon{Version: st.Version, PID: st.PID, Backend: st.Backend, Socket: st.Socket, NodeID: st.NodeID}
	if st.Draining != nil {
		d.Draining = &doctor.Draining{Since: st.Draining.Since, By: st.Draining.By, Reason: st.Draining.Reason}
	}
	if cl := st.Cluster; cl != nil {
		d.Lockspace, d.WaitsFor, d.Guarded = cl.Lockspace.State, cl.Lockspace.WaitsFor, cl.Guarded
		if cl.Guard != nil {
			d.Lost = cl.Guard.Lost
		}
	}
	for _, m := range st.Members {
		if !m.Self {
			d.Peers = append(d.Peers, doctor.Peer{NodeID: m.NodeID, Name: m.Name, Version: m.Version, Silent: m.Silent})
		}
	}
	for _, h := range held.Holders {
		d.Holders = append(d.Holders, doctor.Holder{
			Here: h.NodeID == st.NodeID, Node: h.Node, VM: h.VM, PID: int(h.PID), Shared: h.Mode == "shared",
			Lockspace: h.Lockspace, Resource: h.Resource,
		})
	}
	for _, w := range st.Warnings {
		d.Warnings = append(d.Warnings, doctor.DaemonWarning{Code: w.Code, Message: w.Message})
	}
	return d
}

func (p *page) examination(e examination) {
	colours := map[doctor.Severity]string{doctor.Fault: red, doctor.Warning: yellow, doctor.Unchecked: yellow}
	for _, f := range e.Findings {
		head := p.paint(colours[f.Severity], string(f.Severity))
		if f.ID != string(f.Severity) {
			head += " " + p.paint(bold, f.ID)
		}
		p.line("%s: %s", head, clean(f.Where))
		p.line("  %s", clean(f.What))
		p.line("  remedy: %s", clean(f.Remedy))
	}
	if len(e.Findings) == 0 {
		p.line("Nothing is wrong on this host (backend %q).", e.Backend)
		return
	}
	p.line("")
	p.line("%s, %s, %d could not be checked (backend %q).", plural(e.Faults, "fault", "faults"), plural(e.Warnings, "warning", "warnings"), e.Unchecked, e.Backend)
}

func (p *page) catalogue(list []doctor.Kind) {
	rows := [][]string{}
	for _, k := range list {
		rows = append(rows, []string{k.ID, string(k.Severity), k.Title})
	}
	p.table([]string{"FINDING", "SEVERITY", "MEANS"}, rows)
}
