package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how vmlockd and its cluster are",
		Long: `Show how vmlockd and its cluster are: backend, quorum, fencing, what the
lockspace waits for, who is a member and runs which version, how much is held,
and warnings about what an operator should change.` + asked(),
		Args: cobra.NoArgs,
		Run: a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, _ []string) error {
			st, err := ask(ctx, c.Status)
			if err != nil {
				return err
			}
			a.show(st, func(p *page) { p.status(st) })
			return nil
		}),
	}
}

func (p *page) status(st control.Status) {
	row := func(name, format string, args ...any) {
		p.line("%-11s %s", name, fmt.Sprintf(format, args...))
	}
	row("vmlockd", "%s, pid %d, since %s", clean(st.Version), st.PID, when(st.Started))
	row("backend", "%s", clean(st.Backend))
	row("node", "%s", clean(nodeText(st.NodeID, st.Node)))
	row("socket", "%s", clean(st.Socket))
	if c := st.Cluster; c != nil {
		row("cluster", "%s", clean(orUnknown(c.Name)))
		row("quorum", "%s", p.good(c.Quorate, control.Yes))
		fencing := map[string]string{control.Yes: "on", control.No: "off", control.Unknown: "unknown"}[c.Fencing]
		row("fencing", "%s", p.good(fencing, "on"))
		if c.Guard != nil {
			p.guard(row, *c.Guard, c.Fencing, st.Members)
		}
		text := p.good(c.Lockspace.State, control.LockspaceRunning)
		if c.Lockspace.WaitsFor != "" {
			text += ": " + clean(c.Lockspace.WaitsFor)
		}
		row("lockspace", "%s %s", clean(c.Lockspace.Name), text)
	}
	n := st.Counts
	row("held", "%s (%d exclusive, %d shared) on %s by %s", plural(n.Locks, "lock", "locks"), n.Exclusive, n.Shared,
		plural(n.Resources, "resource", "resources"), plural(n.Owners, "owner", "owners"))
	row("waiting", "%s", plural(n.Waiting, "request", "requests"))
	row("since start", "%d granted, %d refused, %d released, %d forced", st.Events["granted"], st.Events["refused"],
		st.Events["released"]+st.Events["released_owner_gone"], st.Events["forced"])
	if d := st.Draining; d != nil {
		row("draining", "%s", drainText(*d))
	}
	if len(st.Members) > 0 {
		p.line("")
		rows := [][]string{}
		for _, m := range st.Members {
			rows = append(rows, memberRow(m))
		}
		p.table([]string{"NODE", "NAME", "MEMBER", "VMLOCKD", "NOTE"}, rows)
	}
	if len(st.Warnings) > 0 {
		p.line("")
		for _, w := range st.Warnings {
			p.line("%s %s", p.paint(red, "warning:"), clean(w.Message))
		}
	}
}

func memberRow(m control.Member) []string {
	var notes []string
	if m.Self {
		notes = append(notes, "this host")
	}
	if m.Silent {
		notes = append(notes, "does not answer")
	}
	if m.NeedsFencing {
		notes = append(notes, "must be fenced")
	}
	if m.Lost != nil {
		notes = append(notes, "lost at "+when(*m.Lost))
	}
	return []string{fmt.Sprint(m.NodeID), m.Name, m.Member, orUnknown(m.Version), strings.Join(notes, ", ")}
}

func (p *page) good(text, good string) string {
	switch text {
	case good:
		return p.paint(green, text)
	case control.Unknown:
		return p.paint(yellow, text)
	}
	return p.paint(red, text)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func drainText(d control.Drained) string {
	text := "since " + when(d.Since)
	if d.By != "" {
		text += " by " + clean(d.By)
	}
	if d.Reason != "" {
		text += ": " + clean(d.Reason)
	}
	return text
}
