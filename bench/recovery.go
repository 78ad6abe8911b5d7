package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// What is measured here is a node's power cut while it holds many locks: how long after
// corosync has told another node that it is gone the first and the last of them are had
// there. The locks are held and wanted through the daemon in one round, and in the
// bare lockspace in the next. All nodes are members of both, so that the kernels have
// the same to do.

// partRecovery is the part of these, for --only.
const partRecovery = "recovery"

var (
	recoveryLocks  = flag.Int("recovery-locks", 10000, "how many locks a node holds when it loses its power, 1 to 15000")
	recoveryRound  = flag.String("recovery-round", "", "with --role: `daemon` or bare, and a number")
	recoveryRounds = flag.Int("recovery-rounds", 3, "rounds of that, 1 to 10; one takes one to five minutes")
)

const (
	// recoveryNodes is how many nodes there are, so that those left have quorum.
	recoveryNodes = 3
	// recoveryToken is corosync's. What is measured begins when it is over.
	recoveryToken = 3 * time.Second
	// stepTimeout bounds each step of a round, of which taking all locks is the longest.
	stepTimeout = 6 * time.Minute
)

// inheritance is what the heir has measured, since the change of the membership.
type inheritance struct {
	Begin    time.Time     `json:"begin"` // the nodes have this machine's clock
	First    time.Duration `json:"first"`
	Last     time.Duration `json:"last"`
	Refusals int64         `json:"refusals"`
}

// recovery measures all of it in a lab of its own.
func recovery(ctx context.Context, o *options, s *series, r *report, work string) (err error) {
	if *recoveryLocks < 1 || *recoveryLocks > 15000 || *recoveryRounds < 1 || *recoveryRounds > 10 {
		return errors.New("--recovery-locks has 1 to 15000, and --recovery-rounds 1 to 10")
	}
	b := &recoveryBench{cfg: clusterConfig(o, work), r: r}
	b.cfg.Nodes, b.cfg.Token = recoveryNodes, recoveryToken
	defer func() { err = errors.Join(err, b.close()) }()
	for round := range *recoveryRounds {
		for _, how := range []string{howDaemon, howBare} {
			name := fmt.Sprintf("%s%d", how, round)
			if err := b.play(ctx, name, func(ctx context.Context, fresh bool) error { return powerCut(ctx, s, b.l, how, name, fresh) }); err != nil {
				return err
			}
		}
		first, last := recoveryMeasures()
		for _, what := range []string{first, last} {
			s.ratio(what, whoDaemon, whoBare, "1.1 or less")
		}
	}
	for round := range *recoveryRounds {
		name := fmt.Sprintf("quorum%d", round)
		progress("recovery: quorum lost, and back")
		if err := b.play(ctx, name, func(ctx context.Context, fresh bool) error { return quorumRound(ctx, s, b.l, name, fresh) }); err != nil {
			return err
		}
		s.ratio(measureQuorum, whoDaemon, whoBare, "")
	}
	return nil
}

// How locks are taken in a round, and who that is in the table.
const (
	howDaemon = "daemon"
	howBare   = "bare"
	whoDaemon = "vmlockd"
	whoBare   = "bare loop of package dlm"
)

func recoveryMeasures() (first, last string) {
	what := fmt.Sprintf("power cut, %d locks: membership change to the ", *recoveryLocks)
	return what + "first granted elsewhere", what + "last granted elsewhere"
}

// ratio adds a row with the last round of one to that of another.
func (s *series) ratio(measure, who, beside, goal string) *result {
	last := map[string]float64{}
	for _, r := range s.list {
		if r.Measure == measure && len(r.Rounds) > 0 {
			last[r.Who] = r.Rounds[len(r.Rounds)-1]
		}
	}
	row := s.add(measure, who+" / "+beside+", of each round", "", last[who]/last[beside])
	row.Goal = goal
	return row
}

// enter makes a node a member of both lockspaces.
func enter(ctx context.Context, n *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := waitServing(ctx, n); err != nil {
		return err
	}
	_, err := n.MustSucceed(ctx, "bench", "--inside", "--role", roleEnter)
	return err
}

// powerCut is one round: node 3 holds the locks, and node 1 inherits them. fresh says
// that node 3 has not lost its power yet.
func powerCut(ctx context.Context, s *series, l *lab.Lab, how, name string, fresh bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*stepTimeout)
	defer cancel()
	victim, survivor := l.Node(recoveryNodes), l.Node(1)
	if !fresh {
		if err := victim.Boot(ctx); err != nil {
			return err
		}
		if err := l.WaitQuorate(ctx); err != nil {
			return err
		}
		if err := enter(ctx, victim); err != nil {
			return err
		}
	}
	who := whoDaemon
	if how == howBare {
		who = whoBare
	}
	args := []string{"--recovery-locks", fmt.Sprint(*recoveryLocks), "--recovery-round", name}
	progress("recovery: node 3 takes %d locks, %s", *recoveryLocks, how)
	begin := time.Now()
	if _, err := startRole(ctx, victim, "fill-"+name, roleFill, args...); err != nil {
		return err
	}
	progress("recovery: they are taken after %v; the power is cut", time.Since(begin).Round(time.Second))
	heir, err := startRole(ctx, survivor, "heir-"+name, roleHeir, args...)
	if err != nil {
		return err
	}
	cut := time.Now()
	if err := victim.PowerCut(ctx); err != nil {
		return err
	}
	var got inheritance
	if err := outcome(ctx, heir, &got); err != nil {
		return err
	}
	progress("recovery: first after %v, last after %v, %d refusals", got.First, got.Last, got.Refusals)
	first, last := recoveryMeasures()
	s.addTime(fmt.Sprintf("power cut to corosync's membership change, with a token of %v", recoveryToken), who, got.Begin.Sub(cut))
	s.addTime(first, who, got.First)
	s.addTime(last, who, got.Last)
	space := "vmlockd"
	if how == howBare {
		space = bareSpace
	}
	took, err := kernelRecovery(ctx, survivor, space)
	if err != nil {
		return err
	}
	s.addTime("of which the kernel's recovery of the lockspace, as it says", who, took)
	return nil
}

// outcome waits for the end of a role, and reads what it has measured.
func outcome(ctx context.Context, p *lab.Process, to any) error {
	st, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	log, err := p.Log(ctx)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if st.Status != 0 {
		return fmt.Errorf("%s has ended with status %d: %s", p.Name(), st.Status, log)
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "{") {
			return json.Unmarshal([]byte(line), to)
		}
	}
	return fmt.Errorf("%s says nothing of what it has measured: %s", p.Name(), log)
}

// recovered is what the kernel says at the end of a recovery (ls_recover in
// fs/dlm/recoverd.c, 6.1).
var recovered = regexp.MustCompile(`dlm: (\S+): dlm_recover \d+ generation \d+ done: (\d+) ms`)

// kernelRecovery is how long the last recovery of a lockspace took on a node.
func kernelRecovery(ctx context.Context, n *lab.Node, space string) (time.Duration, error) {
	console, err := n.Log(ctx, "console")
	if err != nil {
		return 0, err
	}
	var last string
	for _, m := range recovered.FindAllStringSubmatch(string(console), -1) {
		if m[1] == space {
			last = m[2]
		}
	}
	ms, err := strconv.Atoi(last)
	if err != nil {
		return 0, fmt.Errorf("%s: the kernel says nothing of a recovery of %s", n.Name(), space)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// quorumRound measures the time from corosync's word that there is quorum again to the
// first lock, on a node whose neighbours had all lost their power. Node 3 has none.
func quorumRound(ctx context.Context, s *series, l *lab.Lab, name string, fresh bool) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if fresh {
		if err := l.Node(recoveryNodes).PowerCut(ctx); err != nil {
			return err
		}
		if err := l.Node(1).WaitRing(ctx, 1, 2); err != nil {
			return err
		}
	}
	p, err := startRole(ctx, l.Node(1), name, roleQuorum)
	if err != nil {
		return err
	}
	if err := l.Node(2).PowerCut(ctx); err != nil {
		return err
	}
	if err := l.Node(1).WaitInquorate(ctx); err != nil {
		return err
	}
	if err := l.Node(2).Boot(ctx); err != nil {
		return err
	}
	var got map[string]time.Duration
	if err := outcome(ctx, p, &got); err != nil {
		return err
	}
	for _, who := range []string{whoDaemon, whoBare} {
		s.addTime(measureQuorum, who, got[who])
	}
	if err := l.WaitQuorate(ctx); err != nil {
		return err
	}
	return enter(ctx, l.Node(2))
}

const measureQuorum = "quorum back to the first lock granted"
