package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

type releaseFlags struct {
	lockspace, node, reason string
	pid                     int32
	force, yes              bool

	oneSpace, onePID bool // the flag is there
}

func (a *app) releaseCommand() *cobra.Command {
	var f releaseFlags
	cmd := &cobra.Command{
		Use:   "release [PATH]",
		Short: "Release a lock that is stuck",
		Long: `Release a lock of this host whose owner has ended, which vmlockd could not give
back by itself. That is refused while an owner may be alive, unless --force is
given: then the owner goes on using the disk, another one can get it too, and
what both write destroys it. End the virtual machine instead wherever that is
possible; its locks are then released by themselves.

--force asks before it does anything, unless --yes is given. The user, the time
and the reason are logged.

With --node, say what has become of the locks of another host. Nothing has to be
released there: the DLM gives up all locks of a host that has left the cluster,
after fencing where that is on. While the host is a member its locks can only be
released there.` + asked(exitRefused),
		Example: "  vmlockctl release /srv/vm/web.img\n  vmlockctl release --force --reason 'process hangs in D state, disk is unplugged' /srv/vm/web.img\n  vmlockctl release --node 3",
		Args:    cobra.MaximumNArgs(1),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.lockspace, "lockspace", "", "only in this lockspace, a `path`")
	fl.Int32Var(&f.pid, "pid", 0, "only the lock of this `process`")
	fl.StringVar(&f.node, "node", "", "locks of another `node`, by number or name")
	fl.BoolVar(&f.force, "force", false, "also if owners may be alive")
	fl.StringVar(&f.reason, "reason", "", "`why`, for the log; must be there with --force")
	fl.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	cmd.Run = a.run(func(ctx context.Context, c *control.Client, cmd *cobra.Command, args []string) error {
		f.oneSpace, f.onePID = cmd.Flags().Changed("lockspace"), cmd.Flags().Changed("pid")
		switch {
		case len(args) == 0 && f.node == "", len(args) == 1 && args[0] == "":
			return usage("name what is to be released")
		case f.force && strings.TrimSpace(f.reason) == "":
			return usage("--force needs a --reason, which is logged")
		}
		return a.release(ctx, c, args, f)
	})
	return cmd
}

func (a *app) release(ctx context.Context, c *control.Client, args []string, f releaseFlags) error {
	st, err := ask(ctx, c.Status)
	if err != nil {
		return err
	}
	if f.node == st.Node || f.node == fmt.Sprint(st.NodeID) && st.NodeID != 0 {
		f.node = ""
		if len(args) == 0 {
			return usage("that is this host: name what is to be released")
		}
	}
	q := control.ReleaseRequest{Node: f.node, Force: f.force, Reason: f.reason}
	if f.onePID {
		q.PID = &f.pid
	}
	if f.node == "" {
		held, err := a.toRelease(ctx, c, st, args[0], f)
		if err != nil {
			return err
		}
		q.Lockspace, q.Resource = held[0].Lockspace, held[0].Resource
		for _, o := range held {
			q.Holders = append(q.Holders, control.Seen{PID: o.PID, Since: o.Since})
		}
		if f.force && !f.yes {
			if err := a.confirm(held); err != nil {
				return err
			}
		}
	}
	// As long as the daemon takes: the outcome matters.
	r, err := c.Release(ctx, q)
	if err != nil {
		if code(err) == control.CodeOwnerLives {
			f := asFailure(err)
			f.err.Message += "; end it, or see 'vmlockctl release --help' about --force"
			return f
		}
		return err
	}
	a.show(r, func(p *page) {
		if len(r.Released) > 0 {
			p.line("%s:", plural(len(r.Released), "lock was released", "locks were released"))
			p.held(r.Released, false)
		}
		if r.Note != "" {
			p.line("%s", clean(r.Note))
		}
	})
	return nil
}

// toRelease finds what this host holds under a path: holders of one resource.
func (a *app) toRelease(ctx context.Context, c *control.Client, st control.Status, path string, f releaseFlags) ([]control.Holder, error) {
	one := &f.lockspace
	if !f.oneSpace {
		one = nil
	}
	h, err := ask(ctx, func(ctx context.Context) (control.Holders, error) {
		return c.Who(ctx, namesOf(path, filepath.EvalSymlinks), one)
	})
	if err != nil {
		return nil, err
	}
	var here []control.Holder
	var elsewhere []string
	for _, o := range h.Holders {
		switch {
		case o.NodeID != st.NodeID:
			elsewhere = append(elsewhere, nodeText(o.NodeID, o.Node))
		case !f.onePID || o.PID == f.pid:
			here = append(here, o)
		}
	}
	switch {
	case len(here) == 0 && len(elsewhere) > 0:
		return nil, failed(exitRefused, "held_elsewhere", "%s is held on %s: run 'vmlockctl release' there", path, strings.Join(elsewhere, ", "))
	case len(here) == 0:
		more := ""
		if f.onePID || f.oneSpace {
			more = " like that"
		}
		return nil, failed(exitFailed, control.CodeNotHeld, "nobody on this host holds %s%s: 'vmlockctl ls' lists what is held here", path, more)
	}
	for _, o := range here {
		if o.Lockspace != here[0].Lockspace || o.Resource != here[0].Resource {
			return nil, usage("%s is held as %s in lockspace %q and as %s in lockspace %q: name one of them, with --lockspace",
				path, here[0].Resource, here[0].Lockspace, o.Resource, o.Lockspace)
		}
	}
	return here, nil
}

// confirm says what may be destroyed, and asks.
func (a *app) confirm(held []control.Holder) error {
	p := &page{colour: a.colour}
	p.line("%s", p.paint(red, "These owners lose their lock, and are not told:"))
	p.held(held, false)
	p.line("If one of them is alive it goes on writing to %s. Another virtual machine", clean(held[0].Resource))
	p.line("can then use the disk at the same time, and what is on it is destroyed.")
	return a.sure("--force", p.String()+"Release?", "nothing was released")
}
