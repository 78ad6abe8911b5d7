package main

import (
	"context"
	"errors"
	"os"
)

// local measures the backend "local" on this machine.
func local(ctx context.Context, o *options, r *report, _ string) (err error) {
	s := &series{backend: "local"}
	defer func() { r.Results = append(r.Results, s.results()...) }()
	counts, err := o.countList()
	if err != nil {
		return err
	}
	var open []*daemon
	defer func() {
		for _, d := range open {
			err = errors.Join(err, d.close())
		}
	}()
	// fresh starts a pair of daemons that hold nothing, and ends those before.
	missing := false
	fresh := func() (list []*daemon, err error) {
		for _, d := range open {
			err = errors.Join(err, d.close())
		}
		open = nil
		if err != nil {
			return nil, err
		}
		ours, err := newVmlockd(ctx, "vmlockd", "local", []string{o.vmlockd}, "")
		if err != nil {
			return nil, err
		}
		open = append(open, ours)
		theirs, err := newVirtlockd(ctx)
		if err != nil {
			if !missing {
				r.Missing = append(r.Missing, err.Error())
			}
			missing = true
			return open, nil
		}
		open = append(open, theirs)
		return open, nil
	}
	if o.wants(partHeld) {
		list, err := fresh()
		if err != nil {
			return err
		}
		bare, err := newBareLocks()
		if err != nil {
			return err
		}
		var theirs *daemon
		if len(list) > 1 {
			theirs = list[1]
		}
		err = held(ctx, s, list[0], theirs, bare, counts, o.rounds)
		if err = errors.Join(err, bare.close(ctx)); err != nil {
			return err
		}
	}
	if o.wants(partDeath) {
		list, err := fresh()
		if err != nil {
			return err
		}
		if err := death(ctx, s, list, 4*o.rounds); err != nil {
			return err
		}
	}
	if o.wants(partPairs) {
		list, err := fresh()
		if err != nil {
			return err
		}
		// A line for each grant and each release costs something too.
		quiet, err := newVmlockd(ctx, "vmlockd, log level warning", "local", []string{o.vmlockd}, "[log]\nlevel = \"warning\"\n")
		if err != nil {
			return err
		}
		list = append(list, quiet)
		open = list
		if o.against != "" {
			other, err := newVmlockd(ctx, whoAgainst, "local", []string{o.against}, "")
			if err != nil {
				return err
			}
			list = append(list, other)
			open = list
		}
		floor, err := newEmpty(ctx)
		if err != nil {
			return err
		}
		list = append(list, floor)
		open = list
		if o.profile != "" {
			profiled, err := newProfiled(ctx, o.profile)
			if err != nil {
				return err
			}
			open = append(list, profiled)
			// Alone, so that all of the profile is about what the row says.
			err = pairs(ctx, r, s, []*daemon{profiled}, o.use, o.rounds, o.window)
			return errors.Join(err, profiled.stop(ctx))
		}
		if err := pairs(ctx, r, s, list, o.use, o.rounds, o.window); err != nil {
			return err
		}
	}
	if o.wants(partStart) {
		if err := starts(ctx, r, s, o); err != nil {
			return err
		}
	}
	if o.wants(partEndings) {
		list, err := fresh()
		if err != nil {
			return err
		}
		if err := endings(ctx, s, list, o.rounds); err != nil {
			return err
		}
	}
	if !o.wants(partHang) {
		return nil
	}
	if os.Geteuid() != 0 {
		r.Missing = append(r.Missing, "clients beside files that hang: it takes root to mount a file system that does")
		return nil
	}
	list, err := fresh()
	if err != nil {
		return err
	}
	list = list[:1] // virtlockd has one thread, and would serve nobody
	if o.against != "" {
		other, err := newVmlockd(ctx, whoAgainst, "local", []string{o.against}, "")
		if err != nil {
			return err
		}
		list = append(list, other)
		open = append(open, other)
	}
	return hang(ctx, s, list, o.rounds, o.window)
}

// whoAgainst is the vmlockd of --against in the tables.
const whoAgainst = "vmlockd of --against"
