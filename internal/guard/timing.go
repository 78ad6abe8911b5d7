package guard

import (
	"fmt"
	"time"
)

// The fixed parts of the argument in docs/guard.md.
const (
	// tick is how often the guard looks and acts.
	tick = 250 * time.Millisecond
	// beat is how often a message goes to the group to prove membership.
	beat = time.Second
	// leaseSlack is what a lease has beyond the time that corosync needs to form a
	// new ring, for dlm_controld to agree to it and two messages to go round: a healthy
	// host must not be stopped because another one was lost.
	leaseSlack = 6 * time.Second
	// settleTime is how long a ring must be there for grants to be made in it: what
	// dlm_controld makes of it reaches the kernel and the answers of dlm_controld at
	// different times.
	settleTime = time.Second
	// ringLag bounds how much later corosync's quorum tells of a new ring than the group
	// delivers what was sent in it.
	ringLag = 500 * time.Millisecond
	// stopTime is S: from the end of the lease until all threads are stopped.
	stopTime = time.Second
	// killTime is K, inFlight is F.
	killTime = 2 * time.Second
	inFlight = 3 * time.Second
	// drift is what clocks of two hosts may differ in speed, in percent.
	drift = 5
)

// Timing is all times of the argument. Token, Consensus and Device are corosync's, as it
// computed them from its configuration; the rest is configured.
type Timing struct {
	Token     time.Duration // T: until corosync takes a lost token for lost
	Consensus time.Duration // C: until it forms a ring without those who do not answer
	Device    time.Duration // D: for how long two parts may count the vote of the quorum device when it moves; 0 without one
	Grace     time.Duration // G: from the stop of a process to its end
	HoldOff   time.Duration // how long what a vanished node may have is granted to nobody
	Watchdog  time.Duration // W: until it resets the host; 0 without one
}

// Known reports whether corosync's part is known.
func (t Timing) Known() bool { return t.Token > 0 && t.Consensus > 0 }

// Lease is L: how long a host is sure of the cluster after it has sent a message
// that came back.
func (t Timing) Lease() time.Duration { return t.Token + t.Consensus + leaseSlack }

// FenceBy is until when, after the last message that came back was sent, a
// process may go on that was stopped.
func (t Timing) FenceBy() time.Duration { return t.Lease() + stopTime + t.Grace }

// moves is for how long a host may still prove that it is in the cluster when the quorum device has given its vote to others: until it
// knows, and as long as corosync may stand still unnoticed, besides Token.
func (t Timing) moves() time.Duration {
	if t.Device == 0 {
		return 0
	}
	return t.Device + silence
}

// LeastHoldOff is the shortest hold-off that is safe.
func (t Timing) LeastHoldOff() time.Duration {
	sum := t.Token + t.moves() + t.FenceBy() + killTime + inFlight + t.Watchdog
	return (sum + sum*drift/100).Round(time.Millisecond)
}

// Check returns an error with a remedy if the hold-off is too short for
// corosync's settings.
func (t Timing) Check() error {
	least := t.LeastHoldOff()
	if t.HoldOff >= least {
		return nil
	}
	device := ""
	if t.Device > 0 {
		device = fmt.Sprintf(" a quorum device whose vote may count in two places for %v (from quorum.device.timeout),", t.Device)
	}
	return fmt.Errorf("guard.hold_off is %v, and with corosync's token timeout of %v and consensus timeout of %v,%s guard.grace of %v and a watchdog timeout of %v "+
		"a lost host may use its disks for up to %v: set guard.hold_off to at least that on all hosts, or make the others shorter",
		t.HoldOff, t.Token, t.Consensus, device, t.Grace, t.Watchdog, least)
}
