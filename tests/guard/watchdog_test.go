package guard_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// dogTimeout is within which the watchdog resets a host that does not feed it.
const dogTimeout = 10 * time.Second

// TestWatchdog does to hosts what nobody but a watchdog helps against. It is softdog, a timer of the kernel.
func TestWatchdog(t *testing.T) {
	s := start(t, setup{
		nodes: 3, grace: 2 * time.Second, holdOff: 47 * time.Second, table: "watchdog",
		// /dev/watchdog is one of User-Mode Linux, which the lab has not.
		guard: []string{`watchdog = "/dev/watchdog1"`, `watchdog_timeout = "10s"`},
	})
	s.play(t, func(t *testing.T) *run {
		r := s.ready(t)
		// Debian's kernel for User-Mode Linux has nowayout set.
		r.sh(r.last, "lsmod | grep -q ^softdog || modprobe softdog nowayout=0")
		return r
	}, []faultCase{
		{"Stopped", dogStopped, nobody},
		{"StartedAgain", dogStartedAgain, nobody},
		{"LeftOut", dogLeftOut, nobody},
		{"SwitchedOff", dogSwitchedOff, theLoser},
		{"Stays", dogStays, theLoser},
		{"StaysSwitchedOff", dogStaysSwitchedOff, theLoser},
		{"Taken", dogTaken, nobody},
		{"Hangs", dogHangs, theLoser},
		{"Killed", dogKilled, theLoser},
		{"HangsAndCut", dogHangsAndCut, theLoser},
		{"HostFrozenTooLong", dogFrozen, theLoser},
	})
	s.writeFaults(t)
}

// armed has both write, and waits until the watchdog of the last node runs.
func (r *run) armed() {
	r.t.Helper()
	r.hold()
	r.await("the watchdog to be armed", 30*time.Second, func() bool { return r.dog() == "open" })
	// Nobody may write before: a host that stands still just then would go on.
	if log := r.log(lab.ServiceLock); strings.Index(log, "watchdog is armed") > strings.Index(log, "event=lock-granted") {
		r.t.Errorf("the lock was told of before the watchdog was armed:\n%s", log)
	}
	r.awaitPromise()
	r.contend()
	r.mark()
}

// dog is what vmlockd of the last node says of its watchdog.
func (r *run) dog() string {
	r.t.Helper()
	if st := r.status(r.last); st != nil {
		return st.Cluster.Guard.Watchdog
	}
	return ""
}

// lives waits for longer than the watchdog would, and fails the test if the writer of the last node has not gone on meanwhile.
func (r *run) lives() {
	r.t.Helper()
	over := time.NewTimer(dogTimeout + 5*time.Second)
	defer over.Stop()
	select {
	case <-over.C:
	case <-r.ctx.Done():
	}
	r.goesOn(r.last, 10*time.Second)
}

// resets is what softdog says last (drivers/watchdog/softdog.c).
const resets = "softdog: Initiating system reboot"

// reset waits until the last node was reset, and fails the test if it has written for longer than its watchdog may take.
func (r *run) reset(from time.Time) {
	r.t.Helper()
	r.await("the watchdog to reset node 3", detection, func() bool { return strings.Contains(r.log(logConsole), resets) })
	// It does not boot by itself in the lab.
	r.must(r.loser().PowerCut(r.ctx))
	list := r.records(r.last)
	// It is fed every quarter of a second; the rest is for a busy machine.
	if took := list[len(list)-1].Sub(from); took > dogTimeout+2*time.Second {
		r.t.Errorf("node 3 wrote for %v more; its watchdog has %v", took, dogTimeout)
	}
}

// dogStopped: to stop vmlockd resets no host.
func dogStopped(r *run) {
	r.armed()
	p := r.loser().Service(lab.ServiceLock)
	r.must(p.Signal(r.ctx, syscall.SIGTERM))
	r.fault("vmlockd of node 3 is stopped in good order, and started again after 15 s")
	_, err := p.Wait(r.ctx)
	r.must(err)
	log := r.log(lab.ServiceLock)
	if !strings.Contains(log, "watchdog is disarmed") || !strings.Contains(log, "nothing guards the virtual machines of this host") {
		r.t.Errorf("it does not say that the watchdog is disarmed, or what is unprotected:\n%s", log)
	}
	r.lives()
	r.must(p.Start(r.ctx))
	r.await("the watchdog to be armed again", time.Minute, func() bool { return r.dog() == "open" })
	r.handOver()
}

// dogStartedAgain: only a crash that is not followed by a start in time resets a host.
func dogStartedAgain(r *run) {
	r.armed()
	p := r.loser().Service(lab.ServiceLock)
	r.must(p.Kill(r.ctx))
	r.fault("vmlockd of node 3 is killed, and started again at once")
	r.must(p.Start(r.ctx))
	r.lives()
	r.await("the watchdog to be armed again", time.Minute, func() bool { return r.dog() == "open" })
	r.handOver()
}

// dogLeftOut: a configuration that names no watchdog any more, when vmlockd crashes, resets no host.
func dogLeftOut(r *run) {
	r.armed()
	p := r.loser().Service(lab.ServiceLock)
	r.sh(r.last, "cp /etc/vmlockd/vmlockd.toml /run/with-watchdog && sed -i /^watchdog/d /etc/vmlockd/vmlockd.toml")
	r.must(p.Kill(r.ctx))
	r.fault("vmlockd of node 3 is killed, and started again with a configuration without a watchdog")
	r.must(p.Start(r.ctx))
	r.lives()
	if got := r.dog(); got != "" {
		r.t.Errorf("it has a watchdog: %q", got)
	}
	r.sh(r.last, "mv /run/with-watchdog /etc/vmlockd/vmlockd.toml")
	r.must(p.Stop(r.ctx))
	r.must(p.Start(r.ctx))
	r.await("the watchdog to be armed again", time.Minute, func() bool { return r.dog() == "open" })
	r.handOver()
}

// dogSwitchedOff: a configuration without a guard, when vmlockd crashes, resets no host, and the others do not count on that guard any more.
func dogSwitchedOff(r *run) {
	r.armed()
	p := r.loser().Service(lab.ServiceLock)
	r.sh(r.last, `sed -i -e /^watchdog/d -e 's/^\[guard\]$/&\nmode = "off"/' /etc/vmlockd/vmlockd.toml && grep -q '^mode = "off"' /etc/vmlockd/vmlockd.toml`)
	r.must(p.Kill(r.ctx))
	r.must(p.Start(r.ctx))
	r.lives()
	if log := r.log(lab.ServiceLock); !strings.Contains(log, "its promise is kept until the other hosts have heard") || !strings.Contains(log, "and that the configuration does not name any more, is disarmed") {
		r.t.Errorf("it does not say what becomes of the watchdog:\n%s", log)
	}
	if st := r.status(r.last); st == nil || st.Cluster.Guard.Mode != "off" {
		r.t.Errorf("the guard of node 3 is %s", text(st))
	}
	r.must(r.loser().Cut(r.ctx))
	r.fault("vmlockd of node 3 is killed, and started again with a configuration without a guard, and node 3 is cut off then; its power is cut, and an operator confirms that")
	r.await("node 1 to wait for node 3 for ever", 2*detection, func() bool {
		st := r.status(1)
		return st != nil && len(st.Cluster.Guard.Vanished) == 1 && st.Cluster.Guard.Vanished[0].Forever
	})
	r.idle()
	r.goesOn(r.last, 10*time.Second)
	r.confirm()
}

// dogStays: a watchdog that is armed and cannot be stopped any more resets no host while vmlockd runs, with whatever configuration. An operator is
// told that it does when vmlockd is stopped, and then it does.
func dogStays(r *run) {
	// vmlockd opens it as this kernel has nothing of that in sysfs.
	r.sh(r.last, "modprobe -r softdog && modprobe softdog nowayout=1")
	r.armed()
	r.await("vmlockd to say so", 30*time.Second, func() bool {
		st := r.status(r.last)
		return st != nil && len(st.Cluster.Guard.WatchdogStays) == 1
	})
	p := r.loser().Service(lab.ServiceLock)
	r.sh(r.last, "sed -i /^watchdog/d /etc/vmlockd/vmlockd.toml")
	r.must(p.Kill(r.ctx))
	r.must(p.Start(r.ctx))
	r.lives()
	r.await("vmlockd to say so", 30*time.Second, func() bool { return r.logs("guard-watchdog-stays") })
	if st := r.status(r.last); st == nil || len(st.Cluster.Guard.WatchdogStays) != 1 {
		r.t.Errorf("the status does not say so: %s", text(st))
	}
	res, err := r.loser().Exec(r.ctx, "vmlockctl", "doctor")
	r.must(err)
	if !strings.Contains(res.Stdout, "Before you stop vmlockd, move the virtual machines away") {
		r.t.Errorf("doctor does not say so: %v", res)
	}
	r.must(p.Stop(r.ctx))
	r.fault("vmlockd of node 3 is stopped, with a watchdog that cannot be stopped (nowayout), and an operator confirms that node 3 was reset")
	r.reset(r.faultAt)
	r.idle()
	r.confirmOff()
}

// dogStaysSwitchedOff: with such a watchdog and a configuration without a guard, what the guard before has promised is taken back once. Later starts
// have nothing to do with it but to feed the watchdog.
func dogStaysSwitchedOff(r *run) {
	r.sh(r.last, "modprobe -r softdog && modprobe softdog nowayout=1")
	r.armed()
	r.await("vmlockd to know that it stays", 30*time.Second, func() bool {
		st := r.status(r.last)
		return st != nil && len(st.Cluster.Guard.WatchdogStays) == 1
	})
	p := r.loser().Service(lab.ServiceLock)
	r.sh(r.last, `sed -i -e /^watchdog/d -e 's/^\[guard\]$/&\nmode = "off"/' /etc/vmlockd/vmlockd.toml && grep -q '^mode = "off"' /etc/vmlockd/vmlockd.toml`)
	r.fault("vmlockd of node 3 is killed, with a watchdog that cannot be stopped (nowayout), and started again with a configuration without a guard, three times; an operator confirms at last that node 3 is off")
	for range 3 {
		r.must(p.Kill(r.ctx))
		r.must(p.Start(r.ctx))
		r.lives() // for longer than a lease, too
	}
	if r.logs("guard-stopped") {
		r.t.Errorf("virtual machines were stopped:\n%s", r.log(lab.ServiceLock))
	}
	r.confirm()
}

// otherDog is another program that has the watchdog, until SIGTERM.
const otherDog = `exec 9>/dev/watchdog1; trap 'printf V >&9; exit' TERM; while :; do echo >&9; sleep 1; done`

// dogTaken: what another program has open is left alone, and the host is guarded without it.
func dogTaken(r *run) {
	other, err := r.loser().Start(r.ctx, "other-dog", "sh", "-c", otherDog)
	r.must(err)
	r.fault("the watchdog of node 3 belongs to another program")
	r.hold()
	r.contend()
	r.await("vmlockd to say so", 30*time.Second, func() bool {
		return strings.Contains(r.dog(), "belongs to another program already (sbd, wdmd, watchdog-mux?)")
	})
	res, err := r.loser().Exec(r.ctx, "vmlockctl", "doctor")
	r.must(err)
	if !strings.Contains(res.Stdout, "/dev/watchdog1 belongs to another program") {
		r.t.Errorf("doctor does not say so: %v", res)
	}
	r.lives()
	r.must(other.Stop(r.ctx))
	r.await("the watchdog to be armed when the other one has left it", 30*time.Second, func() bool { return r.dog() == "open" })
	r.handOver()
}

// dogHangs: a vmlockd that hangs keeps no promise.
func dogHangs(r *run) {
	r.armed()
	r.must(r.loser().Service(lab.ServiceLock).Signal(r.ctx, syscall.SIGSTOP))
	r.fault("vmlockd of node 3 stands still")
	r.reset(r.faultAt)
	r.goesOn(1, r.takeOver())
}

func dogKilled(r *run) {
	r.armed()
	r.must(r.loser().Service(lab.ServiceLock).Kill(r.ctx))
	r.fault("vmlockd of node 3 is killed, and not started again")
	r.reset(r.faultAt)
	r.goesOn(1, r.takeOver())
}

// dogHangsAndCut is not covered without a watchdog.
func dogHangsAndCut(r *run) {
	r.armed()
	r.must(r.loser().Service(lab.ServiceLock).Signal(r.ctx, syscall.SIGSTOP))
	r.fault("vmlockd of node 3 stands still, and node 3 is cut off at the same time")
	r.must(r.loser().Cut(r.ctx))
	r.reset(r.faultAt)
	r.goesOn(1, r.takeOver())
}

// dogFrozen: its timer has run out when it goes on.
func dogFrozen(r *run) {
	r.armed()
	r.frozenTooLong("node 3 as a whole stands still until node 1 writes, and goes on", 0)
	r.reset(r.faultAt)
}
