package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

func (a *app) settleCommand() *cobra.Command {
	var q control.SettleRequest
	var yes bool
	cmd := &cobra.Command{
		Use:   "settle",
		Short: "Show and give back what a damaged journal may have said",
		Long: `Show what is in doubt after vmlockd has found its journal damaged. Records of locks
may be missing then, so what is locked stays locked although no record says for
whom: nobody gets these disks, and 'release' does not know them.

--force gives all of it back and ends the doubt. Do that when no virtual machine
runs on this host that 'vmlockctl ls' does not list: one that does goes on using its
disk, another one can get it too, and what both write destroys it. Otherwise end or
migrate these virtual machines first, or leave it as it is until the next reboot.

With backend = "cluster" the locks in doubt are orphans in the kernel, which cannot be
listed; --force purges them. If vmlockd was killed in this boot while a request was
on its way to another host, that can crash kernels up to 6.1 at least.

Locks that there are records of are not among what is given back. While one of them
could not be taken back after a restart, --force is refused and says what to do.

--force asks before it does anything, unless --yes is given. The user, the time
and the reason are logged.` + asked(exitRefused),
		Example: "  vmlockctl settle\n  vmlockctl settle --force --reason 'no virtual machine runs here'",
		Args:    cobra.NoArgs,
	}
	fl := cmd.Flags()
	fl.BoolVar(&q.Force, "force", false, "give it back")
	fl.StringVar(&q.Reason, "reason", "", "`why`, for the log; must be there with --force")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Run = a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, _ []string) error {
		if q.Force && strings.TrimSpace(q.Reason) == "" {
			return usage("--force needs a --reason, which is logged")
		}
		d, err := ask(ctx, c.Doubt)
		if err != nil {
			return err
		}
		if q.Force && d.Doubt != nil {
			if !yes {
				if err := a.confirmSettle(*d.Doubt); err != nil {
					return err
				}
			}
			// As long as the daemon takes: the outcome matters.
			if d, err = c.Settle(ctx, q); err != nil {
				return err
			}
			a.show(d, func(p *page) {
				p.line("%s given back, and nothing is in doubt any more.", plural(d.Released, "lock was", "locks were"))
			})
			return nil
		}
		a.show(d, func(p *page) { p.doubt(d.Doubt) })
		return nil
	})
	return cmd
}

func (p *page) doubt(d *control.Doubt) {
	if d == nil {
		p.line("Nothing is in doubt.")
		return
	}
	p.line("The journal was damaged: %s", clean(d.Damage))
	if len(d.Unexplained) == 0 {
		p.line("No lock is known that no record explains.")
	} else {
		p.line("%s locked, and no record says for whom:", plural(len(d.Unexplained), "thing is", "things are"))
		for _, name := range d.Unexplained {
			p.line("  %s", clean(name))
		}
	}
	if d.Orphans {
		p.line("The kernel may have further locks of this host, which cannot be listed.")
	}
}

// confirmSettle says what may be destroyed, and asks.
func (a *app) confirmSettle(d control.Doubt) error {
	p := &page{colour: a.colour}
	p.doubt(&d)
	p.line("%s", p.paint(red, "All of this is given back. If a virtual machine uses one of these disks it goes on"))
	p.line("%s", p.paint(red, "writing, another one can get the disk, and what is on it is destroyed."))
	return a.sure("--force", p.String()+"Give it back?", "nothing was released")
}
