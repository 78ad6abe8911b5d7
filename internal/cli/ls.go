package cli

import (
	"context"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

func (a *app) lsCommand() *cobra.Command {
	var f control.Filter
	var cluster, refused bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List who holds what",
		Long: `List who holds what on this host, or with --cluster on all hosts that answer.
With --refused, list who was refused lately on this host, and requests that have
not been answered yet.

In the pattern of --path * stands for anything, and ? for one byte.` + asked(exitIncomplete),
		Example: "  vmlockctl ls --cluster --path '/srv/vm/*'\n  vmlockctl ls --vm web --json",
		Args:    cobra.NoArgs,
		Run: a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, _ []string) error {
			if err := f.Check(); err != nil {
				return usage("%v", err)
			}
			if refused {
				if cluster || f.Node != "" {
					return usage("--refused is about this host only: leave out --cluster and --node")
				}
				return a.lsRefused(ctx, c, f)
			}
			q := url.Values{}
			for key, value := range map[string]string{"vm": f.VM, "node": f.Node, "path": f.Path, "mode": f.Mode} {
				if value != "" {
					q.Set(key, value)
				}
			}
			// A node is looked for in the whole cluster.
			if cluster || f.Node != "" {
				q.Set("cluster", "true")
			}
			list := func(ctx context.Context) (control.Holders, error) { return c.Holders(ctx, q) }
			h, err := ask(ctx, list)
			if code(err) == control.CodeNoCluster && !cluster {
				q.Del("cluster")
				h, err = ask(ctx, list)
			}
			if err != nil {
				return err
			}
			a.show(h, func(p *page) { p.holders(h, f != (control.Filter{})) })
			a.incomplete(h.Missing)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&cluster, "cluster", false, "ask all hosts of the cluster")
	cmd.Flags().StringVar(&f.VM, "vm", "", "only this virtual machine, by `name` or UUID")
	cmd.Flags().StringVar(&f.Node, "node", "", "only this `node`, by number or name; asks all hosts")
	cmd.Flags().StringVar(&f.Path, "path", "", "only resources that have this `pattern`")
	cmd.Flags().StringVar(&f.Mode, "mode", "", "only this `mode`: exclusive or shared")
	cmd.Flags().BoolVar(&refused, "refused", false, "list who was refused lately, and who waits")
	return cmd
}

func (a *app) lsRefused(ctx context.Context, c *control.Client, f control.Filter) error {
	r, err := ask(ctx, c.Refused)
	if err != nil {
		return err
	}
	kept := control.Refused{Refused: []control.Event{}, Waiting: []control.Waiter{}}
	for _, e := range r.Refused {
		if f.Match(control.Holder{VM: e.VM, UUID: e.UUID, Mode: e.Mode, Resource: e.Resource}) {
			kept.Refused = append(kept.Refused, e)
		}
	}
	for _, w := range r.Waiting {
		if f.Match(control.Holder{VM: w.VM, UUID: w.UUID, Mode: w.Mode, Resource: w.Resource}) {
			kept.Waiting = append(kept.Waiting, w)
		}
	}
	a.show(kept, func(p *page) {
		var rows [][]string
		for _, e := range kept.Refused {
			rows = append(rows, []string{when(e.Time), e.VM, fmt.Sprint(e.PID), e.Mode, e.Lockspace, e.Resource, e.Reason})
		}
		if len(rows) == 0 {
			p.line("%s was refused lately.", filtered("Nobody", f != (control.Filter{})))
		} else {
			p.table([]string{"REFUSED", "VM", "PID", "MODE", "LOCKSPACE", "RESOURCE", "REASON"}, rows)
		}
		rows = nil
		for _, w := range kept.Waiting {
			rows = append(rows, []string{when(w.Since), w.VM, fmt.Sprint(w.PID), w.Mode, w.Lockspace, w.Resource})
		}
		if len(rows) > 0 {
			p.line("")
			p.table([]string{"WAITING SINCE", "VM", "PID", "MODE", "LOCKSPACE", "RESOURCE"}, rows)
		}
	})
	return nil
}

// filtered says that there may be more of it: who has mistyped a name must not read
// that there is nothing.
func filtered(nothing string, filter bool) string {
	if filter {
		return nothing + " like that"
	}
	return nothing
}

func (p *page) holders(h control.Holders, filter bool) {
	switch {
	case len(h.Holders) == 0 && len(h.Missing) > 0:
		p.line("Those who answered hold %s.", filtered("nothing", filter))
		return
	case len(h.Holders) == 0:
		p.line("%s is held.", filtered("Nothing", filter))
		return
	}
	p.held(h.Holders, h.Scope == control.ScopeCluster)
}

// held is the table of holders, with their node if there can be several.
func (p *page) held(list []control.Holder, nodes bool) {
	rows := [][]string{}
	for _, h := range list {
		node := ""
		if nodes {
			node = h.Node
			if node == "" {
				node = fmt.Sprint(h.NodeID)
			}
		}
		rows = append(rows, []string{node, h.VM, fmt.Sprint(h.PID), h.Mode, when(h.Since), h.Lockspace, h.Resource})
	}
	p.table([]string{"NODE", "VM", "PID", "MODE", "SINCE", "LOCKSPACE", "RESOURCE"}, rows)
}
