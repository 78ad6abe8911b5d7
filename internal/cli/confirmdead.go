package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

func (a *app) confirmDeadCommand() *cobra.Command {
	var q control.ConfirmDeadRequest
	var yes bool
	cmd := &cobra.Command{
		Use:   "confirm-dead NODE",
		Short: "Say that a host that vanished is off",
		Long: `Say that a host that vanished from the cluster is off, by number or name. What it
may have used is then granted at once, on all hosts, and not only when its guard
must have stopped it.

If that host is alive it goes on writing while another one uses the same disks,
and what both write destroys them. So look first: switch its power off, or unplug
it from the storage. The user, the time and the reason are logged.` + asked(exitRefused),
		Example: "  vmlockctl confirm-dead --reason 'power supply burned, unplugged' 3",
		Args:    cobra.ExactArgs(1),
		Run: a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, args []string) error {
			q.Node = args[0]
			if strings.TrimSpace(q.Reason) == "" {
				return usage("a --reason is needed, which is logged: how do you know that it is off?")
			}
			if !yes {
				if err := a.confirmOff(q.Node); err != nil {
					return err
				}
			}
			d, err := ask(ctx, func(ctx context.Context) (control.ConfirmedDead, error) { return c.ConfirmDead(ctx, q) })
			if err != nil {
				return err
			}
			a.show(d, func(p *page) {
				p.line("%s counts as off: nothing is held off for it any more", clean(nodeText(d.NodeID, d.Name)))
				if d.Note != "" {
					p.line("%s", clean(d.Note))
				}
			})
			return nil
		}),
	}
	cmd.Flags().StringVar(&q.Reason, "reason", "", "`how` it is known, for the log; must be there")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirmOff says what may be destroyed, and asks.
func (a *app) confirmOff(node string) error {
	return a.sure("confirm-dead", fmt.Sprintf("If node %s is alive and cut off, its virtual machines go on writing, and what others\nwrite on the same disks is destroyed. Is it off, or cut off from the storage?", clean(node)),
		"nothing was confirmed")
}
