package cli

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

func (a *app) whoCommand() *cobra.Command {
	var lockspace string
	cmd := &cobra.Command{
		Use:   "who PATH",
		Short: "Show who holds a disk",
		Long: `Show who holds a disk, on this host and on all hosts of a cluster that answer.

The disk is looked for in every lockspace, as PATH and as the SHA-256 that
libvirt makes of it with file_lockspace_dir; a relative path and a symbolic link
are looked for by what they lead to as well, and in a cluster the disk is found
under whatever path it is held (see identify). With --lockspace only that one
counts, and "" is the one that libvirt uses unless it is configured otherwise.

That nobody holds the disk is a success too, unless hosts did not answer.` + asked(exitIncomplete),
		Example: "  vmlockctl who /srv/vm/web.img\n  vmlockctl who --json /dev/vg0/web | jq '.holders[].vm'",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&lockspace, "lockspace", "", "only this lockspace, a `path`")
	cmd.Run = a.run(func(ctx context.Context, c *control.Client, cmd *cobra.Command, args []string) error {
		if args[0] == "" {
			return usage("PATH is empty: name a disk")
		}
		one := &lockspace
		if !cmd.Flags().Changed("lockspace") {
			one = nil
		}
		h, err := ask(ctx, func(ctx context.Context) (control.Holders, error) {
			return c.Who(ctx, namesOf(args[0], filepath.EvalSymlinks), one)
		})
		if err != nil {
			return err
		}
		a.show(h, func(p *page) {
			if len(h.Holders) == 0 {
				where := "on this host"
				if h.Scope == control.ScopeCluster {
					where = "in the cluster"
				}
				if len(h.Missing) > 0 {
					where = "of those who answered"
				}
				p.line("Nobody %s holds %s.", where, clean(args[0]))
				return
			}
			p.held(h.Holders, h.Scope == control.ScopeCluster)
		})
		a.incomplete(h.Missing)
		return nil
	})
	return cmd
}

// linksPatience is how long a file system may take to say where a path leads to. One
// that hangs is a good reason to ask who has the disk.
const linksPatience = time.Second

// namesOf are the names under which a disk may be held: the path as it is, and
// where it leads to by follow (filepath.EvalSymlinks). A resource of another kind, as
// of a <lease>, is no path, and then only its own name counts.
func namesOf(path string, follow func(string) (string, error)) []string {
	names := []string{path}
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return names
	}
	add(abs)
	leads := make(chan string, 1) // so that nobody is waited for who comes too late
	go func() {
		defer close(leads)
		if to, err := follow(abs); err == nil {
			leads <- to
		}
	}()
	select {
	case to, ok := <-leads:
		if ok {
			add(to)
		}
	case <-time.After(linksPatience):
	}
	return names
}
