package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

// lookAtDrain is how often drain --wait looks.
const lookAtDrain = 500 * time.Millisecond

func (a *app) drainCommand() *cobra.Command {
	var q control.DrainRequest
	var wait bool
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Make this host grant nothing new, and show what is left",
		Long: `Make this host grant nothing new, and show what is left. What is held stays held
until it is released, for example because the virtual machine is migrated to
another host. A virtual machine that comes back from a failed migration, or is
suspended and resumed meanwhile, gets its disks again; everything else is refused,
also to one that was suspended before. What is suspended meanwhile is shown, and
--wait waits for it.

A drain outlives vmlockd, and ends with --undo or with a reboot. Only what was
given back is not known any more after a restart or an upgrade of vmlockd: a
virtual machine that was suspended then cannot be resumed before --undo.` + asked(),
		Example: "  vmlockctl drain --wait --reason 'new kernel' && reboot\n  vmlockctl drain --undo",
		Args:    cobra.NoArgs,
		Run: a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, _ []string) error {
			if q.Undo && wait {
				return usage("--wait and --undo do not go together: leave one of them out")
			}
			d, err := ask(ctx, func(ctx context.Context) (control.Drain, error) { return c.Drain(ctx, q) })
			if err != nil {
				return err
			}
			if wait {
				note := d.Note
				if d, err = a.waitDrained(ctx, c, d); err != nil {
					return err
				}
				d.Note = note
			}
			a.show(d, func(p *page) { p.drain(d) })
			return nil
		}),
	}
	cmd.Flags().BoolVar(&q.Undo, "undo", false, "grant locks again")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nothing is held")
	cmd.Flags().StringVar(&q.Reason, "reason", "", "`why`, for the log and for others")
	return cmd
}

// waitDrained waits until nothing is left, also across a restart of the daemon.
func (a *app) waitDrained(ctx context.Context, c *control.Client, d control.Drain) (control.Drain, error) {
	told, gone := -1, time.Time{}
	for {
		suspended := suspendedVMs(d.Returning)
		if n := len(d.Left) + len(d.Waiting) + len(suspended); n != told && gone.IsZero() {
			told = n
			if n == 0 {
				return d, nil
			}
			if !a.json {
				p := &page{colour: a.colour}
				var what []string
				if locks := n - len(suspended); locks > 0 {
					what = append(what, plural(locks, "lock", "locks"))
				}
				if len(suspended) > 0 {
					what = append(what, "what is suspended: "+clean(strings.Join(suspended, ", ")))
				}
				p.line("Waiting for %s.", strings.Join(what, ", and for "))
				_, _ = a.Err.Write([]byte(p.String()))
			}
		}
		select {
		case <-ctx.Done():
			return d, ctx.Err()
		case <-time.After(lookAtDrain):
		}
		next, err := ask(ctx, c.Drained)
		switch {
		case err == nil && !next.Draining:
			return d, failed(exitFailed, "undone", "the drain was ended by somebody else: this host grants locks; 'vmlockctl drain' begins it again")
		case err == nil:
			d, gone = next, time.Time{}
		case code(err) != control.CodeUnavailable:
			return d, err
		case gone.IsZero():
			gone = time.Now()
		case time.Since(gone) > comeBack:
			return d, err
		}
	}
}

// suspendedVMs are the virtual machines of these, each once.
func suspendedVMs(list []control.Returner) (out []string) {
	for _, r := range list {
		if text := processText(r.VM, r.PID); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

func (p *page) drain(d control.Drain) {
	if d.Note != "" {
		defer func() { p.line("%s", clean(d.Note)) }()
	}
	if !d.Draining {
		p.line("This host grants locks.")
		return
	}
	text := ""
	if d.Drained != nil {
		text = " " + drainText(*d.Drained)
	}
	p.line("This host is being drained%s.", text)
	if len(d.Left) == 0 {
		p.line("Nothing is held.")
	} else {
		p.line("%s left:", plural(len(d.Left), "lock is", "locks are"))
		p.held(d.Left, false)
	}
	if suspended := suspendedVMs(d.Returning); len(suspended) > 0 {
		p.line("Suspended, as they live and have given disks back: %s. They take them again when they are resumed, and end with a reboot of this host.",
			clean(strings.Join(suspended, ", ")))
	}
	if len(d.Waiting) > 0 {
		p.line("%s under way.", plural(len(d.Waiting), "request is", "requests are"))
	}
}
