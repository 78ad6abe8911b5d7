package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/lab"
)

// insideTimeout bounds a part that runs in the node. The longest is the one that takes 10,000 locks, and waits twice until
// their owners are written into them.
const insideTimeout = 25 * time.Minute

// nodeSocket is where the nodes' own vmlockd listens.
const nodeSocket = "/run/libvirt/virtlockd-sock"

// cluster measures the backend "cluster" in a lab of two nodes.
func cluster(ctx context.Context, o *options, r *report, work string) (err error) {
	cfg := clusterConfig(o, work)
	cfg.Nodes = 2
	if missing := lab.Missing(cfg); len(missing) > 0 {
		r.Missing = append(r.Missing, "backend cluster: this machine cannot run the lab:\n  "+strings.Join(missing, "\n  "))
		return nil
	}
	if err := build(ctx, cfg.Binaries["bench"], "github.com/vmlockd/vmlockd/bench"); err != nil {
		return err
	}
	s := &series{backend: "cluster"}
	defer func() { r.Results = append(r.Results, s.results()...) }()
	var errs []error
	// Each has a lab of its own, and what goes wrong in one is nothing to the others.
	if o.wants(partSanlock) {
		errs = append(errs, sanlock(ctx, o, s, r, work))
	}
	if o.wants(partRecovery) {
		errs = append(errs, recovery(ctx, o, s, r, work))
	}
	if o.wants(partCurves) {
		errs = append(errs, curves(ctx, o, r, work))
	}
	if o.wants(partDeath) || slices.ContainsFunc(partsInside, o.wants) {
		errs = append(errs, twoNodes(ctx, o, s, r, cfg, work))
	}
	return errors.Join(errs...)
}

// partsInside are measured by this program in node 1.
var partsInside = []string{partDLM, partRecords, partHeld}

// twoNodes measures what is measured in a lab of two nodes.
func twoNodes(ctx context.Context, o *options, s *series, r *report, cfg lab.Config, work string) (err error) {
	if o.wants(partDLM) {
		program, err := buildLibdlm(ctx, work)
		if err != nil {
			r.Missing = append(r.Missing, err.Error())
		} else {
			cfg.Binaries[libdlmName] = program
		}
	}
	progress("cluster: two nodes boot")
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for _, n := range l.Nodes() {
		if err := waitServing(ctx, n); err != nil {
			return err
		}
	}
	if o.wants(partDeath) {
		if err := deathInCluster(ctx, s, l, 4*o.rounds); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(partsInside, o.wants) {
		return nil
	}
	_, other, err := sleeper(ctx, l.Node(2), "other")
	if err != nil {
		return err
	}
	defer other.Close()
	if err := other.Acquire(ctx, locking.Ref{Name: refusedName}, 0); err != nil {
		return err
	}
	if o.wants(partDLM) {
		if err := holdForPairs(ctx, l.Node(2), other); err != nil {
			return err
		}
	}
	// The other node stays in the lockspace, as in a real cluster.
	if err := l.Node(1).Service(lab.ServiceLock).Stop(ctx); err != nil {
		return err
	}
	var errs []error
	for _, part := range partsInside {
		if o.wants(part) {
			list, err := runInside(ctx, o, l.Node(1), part)
			r.Results, errs = append(r.Results, list...), append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// runInside has this program measure a part in a node.
func runInside(ctx context.Context, o *options, n *lab.Node, part string, more ...string) ([]result, error) {
	ctx, cancel := context.WithTimeout(ctx, insideTimeout)
	defer cancel()
	args := append([]string{"bench", "-inside", "-vmlockd", "vmlockd", "-locks", o.counts, "-rounds", fmt.Sprint(o.rounds), "-only", part, "-guard", o.guard, "-window", o.window.String()}, more...)
	res, err := n.Run(ctx, lab.Cmd{Args: args, Env: []string{"HOME=/root"}})
	if err != nil {
		return nil, fmt.Errorf("%s, in the node: %w", part, err)
	}
	fmt.Fprint(os.Stderr, res.Stderr)
	var list []result
	if err := json.Unmarshal([]byte(res.Stdout), &list); err != nil {
		return nil, fmt.Errorf("%s, in the node: %w: %v", part, err, res)
	}
	if !res.OK() {
		lines := strings.Split(strings.TrimSpace(res.Stderr), "\n")
		err = fmt.Errorf("%s, in the node: status %d: %s", part, res.Status, lines[len(lines)-1])
	}
	return list, err
}

// clusterConfig is a lab with the daemon to measure, and with this program, which is to
// be built before the lab is started.
func clusterConfig(o *options, work string) lab.Config {
	return lab.Config{
		VMLockd: o.vmlockd, LogDir: o.logs,
		VMLockdConfig: func(int) string { return "backend = \"cluster\"\n" + o.guardLine() },
		Binaries:      map[string]string{"bench": filepath.Join(work, "bench")},
	}
}

func (o *options) guardLine() string { return fmt.Sprintf("guard.mode = %q\n", o.guard) }

// inside measures in the node, and prints the results as JSON: those before a failure as well.
func inside(ctx context.Context, o *options) error {
	if *role != "" {
		return play(ctx)
	}
	s := &series{backend: "cluster"}
	err := partInside(ctx, o, s)
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(s.results()))
}

func partInside(ctx context.Context, o *options, s *series) (err error) {
	counts, err := o.countList()
	if err != nil {
		return err
	}
	if o.wants(partCurves) {
		if err := curvesInside(ctx, s, o); err != nil {
			return err
		}
	}
	if o.wants(partDLM) {
		d, err := newVmlockd(ctx, whoDaemon, "cluster", []string{o.vmlockd}, o.guardLine())
		if err != nil {
			return err
		}
		err = dlmInside(ctx, s, d, o.rounds, o.window)
		// In order, so that it leaves its lockspace: who finds himself in it with a new journal takes what is
		// there for locks that he does not know.
		if err = errors.Join(err, d.stop(ctx), d.close()); err != nil {
			return err
		}
	}
	if o.wants(partRecords) {
		if err := records(ctx, s, o.rounds, o.window); err != nil {
			return err
		}
	}
	if !o.wants(partHeld) {
		return nil
	}
	bare, err := newBareAdoption(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.close(ctx)) }()
	d, err := newVmlockd(ctx, "vmlockd", "cluster", []string{o.vmlockd}, o.guardLine())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return held(ctx, s, d, nil, bare, counts, o.rounds)
}

func waitServing(ctx context.Context, n *lab.Node) error {
	return lab.WaitFor(ctx, n.Name()+" to serve", func(ctx context.Context) (bool, error) {
		c, err := dialNode(ctx, n)
		if err != nil {
			return false, nil
		}
		defer c.Close()
		// It refuses until it has joined the lockspace. The owner is nobody, so that
		// the end of this connection cannot end anybody.
		ref := locking.Ref{Name: "joined-" + n.Name()}
		if c.Register(ctx, ownerOf(-1, 0)) != nil || c.Acquire(ctx, ref, 0) != nil {
			return false, nil
		}
		return true, c.Release(ctx, ref)
	})
}

func dialNode(ctx context.Context, n *lab.Node) (*lockprogram.Client, error) {
	conn, err := n.DialUnix(ctx, nodeSocket)
	if err != nil {
		return nil, err
	}
	return &lockprogram.Client{Client: rpc.NewClient(conn)}, nil
}

// sleeper is an owner in a node, and a connection that speaks for it.
func sleeper(ctx context.Context, n *lab.Node, name string) (*lab.Process, *lockprogram.Client, error) {
	p, err := n.Start(ctx, name, "sleep", "3600")
	if err != nil {
		return nil, nil, err
	}
	st, err := p.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := dialNode(ctx, n)
	if err == nil {
		err = c.Register(ctx, ownerOf(st.PID, 0))
	}
	return p, c, err
}

// deathInCluster measures how long the lock of a dead owner keeps the other node
// out. This process talks to both nodes, so that there is one clock; the command
// by which the lab kills the owner, and what this process is told over the lab's
// network, are part of the figure.
func deathInCluster(ctx context.Context, s *series, l *lab.Lab, rounds int) error {
	progress("cluster: death of owners")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	_, heir, err := sleeper(ctx, l.Node(2), "heir")
	if err != nil {
		return err
	}
	defer heir.Close()
	for round := range rounds {
		owner, c, err := sleeper(ctx, l.Node(1), fmt.Sprintf("owner%d", round))
		if err != nil {
			return err
		}
		ref := locking.Ref{Name: fmt.Sprintf("disk%d", round)}
		if err := c.Acquire(ctx, ref, 0); err != nil {
			return err
		}
		if !refused(heir.Acquire(ctx, ref, 0)) {
			return errors.New("both nodes have one lock")
		}
		begin := time.Now()
		if err := owner.Signal(ctx, syscall.SIGKILL); err != nil {
			return err
		}
		command := time.Since(begin)
		tries := 0
		for {
			tries++
			err := heir.Acquire(ctx, ref, 0)
			if err == nil {
				break
			}
			if !refused(err) {
				return err
			}
		}
		row := s.addTime(measureDeathNode, "vmlockd", time.Since(begin))
		row.Goal = "100 ms"
		s.addTime("of which the lab's command to kill the owner", "lab", command)
		begin = time.Now()
		if err := heir.Release(ctx, ref); err != nil {
			return err
		}
		if err := heir.Acquire(ctx, ref, 0); err != nil {
			return err
		}
		s.addTime("beside it: release and acquire, through the lab's network", "vmlockd", time.Since(begin))
		if err := heir.Release(ctx, ref); err != nil {
			return err
		}
		c.Close()
	}
	return nil
}
