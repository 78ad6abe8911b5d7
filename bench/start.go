package main

import (
	"context"
	"errors"
)

// starts measures daemons that have never run before: how long they take until they answer,
// and the memory that they have then. They take turns, and each has a mount namespace
// made for it, which virtlockd needs.
func starts(ctx context.Context, r *report, s *series, o *options) error {
	progress("%s: starts", s.backend)
	wrapped := []string{"unshare", "--mount", "/bin/sh", "-ec", `mount -t tmpfs none /run; mkdir /run/libvirt; exec "$@"`, "sh", o.vmlockd}
	fresh := []func() (*daemon, error){
		func() (*daemon, error) { return newVmlockd(ctx, "vmlockd", "local", wrapped, "") },
		func() (*daemon, error) { return newVirtlockd(ctx) },
	}
	for range 4 * o.rounds {
		for i, start := range fresh {
			if start == nil {
				continue
			}
			d, err := start()
			if err != nil {
				r.Missing = append(r.Missing, "starts: "+err.Error())
				fresh[i] = nil
				continue
			}
			row := s.addTime("start to the first answer", d.who, d.took)
			z := d.size()
			memory := s.add("memory of a daemon that holds nothing, with its holder", d.who, "KiB", z.daemon+z.holder)
			memory.Note = z.what
			if !d.isPeer() {
				row.Goal, memory.Goal = "1 x virtlockd", "20000"
			}
			if err := d.close(); err != nil {
				return errors.Join(err, ctx.Err())
			}
		}
	}
	return nil
}
