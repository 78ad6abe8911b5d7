package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

func (a *app) identifyCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "identify PATH",
		Short: "Show which disk a path is",
		Long: `Show which disk a path is: whether other hosts can use it, the name by which it
is locked in a cluster, and how that was found out.

With --cluster every host is asked what the path is there. A host that takes it
for another disk, or for one of its own, is marked: a virtual machine that is
started or migrated there would lock something else.

With the local backend it is the file itself that is locked, on this host.` + asked(exitIncomplete, exitDiffer),
		Example: "  vmlockctl identify /dev/vg0/web\n  vmlockctl identify --cluster /srv/vm/web.img\n  vmlockctl identify --json /srv/vm/web.img | jq -r '.disks[0].name'",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&all, "cluster", false, "ask all hosts of the cluster")
	cmd.Run = a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, args []string) error {
		if args[0] == "" {
			return usage("PATH is empty: name a disk")
		}
		path, err := filepath.Abs(args[0])
		if err != nil {
			return usage("%v", err)
		}
		d, err := ask(ctx, func(ctx context.Context) (control.Identified, error) { return c.Identify(ctx, path, all) })
		if err != nil {
			return err
		}
		a.show(d, func(p *page) { p.identified(d, all) })
		for _, one := range d.Disks {
			if one.Differs {
				a.status = exitDiffer
			}
		}
		if len(d.Disks) > 0 && d.Disks[0].Error != "" {
			a.status = exitFailed
		}
		a.incomplete(d.Missing)
		return nil
	})
	return cmd
}

// identified shows what this host says, and a table of all if others were asked.
func (p *page) identified(d control.Identified, all bool) {
	row := func(name, format string, args ...any) {
		p.line("%-8s %s", name, fmt.Sprintf(format, args...))
	}
	if len(d.Disks) == 0 {
		return
	}
	here := d.Disks[0]
	row("path", "%s", clean(here.Path))
	row("type", "%s", clean(orUnknown(here.Type)))
	if here.Error != "" {
		row("disk", "%s", p.paint(red, "cannot be told, and no lock is granted: "+clean(here.Error)))
	} else {
		row("scope", "%s", scopeText(here.Scope))
		row("name", "%s", clean(here.Name))
		if here.Resource != "" {
			row("lock", "%s", clean(here.Resource))
		}
	}
	for i, s := range here.Steps {
		name := ""
		if i == 0 {
			name = "why"
		}
		row(name, "%s", clean(s))
	}
	if here.Doubt {
		where := "under another path"
		if !filepath.IsAbs(here.Name) {
			where = "under another name"
		}
		row("doubt", "%s", p.paint(yellow, "where other hosts have it "+where+" it is another disk to them: see [[identity.rule]] in docs/identity.md"))
	}
	if !all {
		return
	}
	p.line("")
	rows := [][]string{}
	for i, one := range d.Disks {
		note, name := "", one.Name
		switch {
		case i == 0:
			note = "this host"
		case one.Differs:
			note = "DIFFERS"
		case one.Scope == control.ScopeHost:
			note = "its own"
		}
		if one.Error != "" {
			name = one.Error
		}
		rows = append(rows, []string{fmt.Sprint(one.NodeID), one.Node, orUnknown(one.Scope), one.Type, note, one.Path, name})
	}
	p.table([]string{"NODE", "HOST", "SCOPE", "TYPE", "NOTE", "PATH", "NAME"}, rows)
}

func scopeText(scope string) string {
	if scope == control.ScopeHost {
		return "host: no other host can use it"
	}
	return clean(scope) + ": other hosts may use it"
}
