package daemon

import (
	"context"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// idler ends a daemon that nobody uses: no client is connected, and no lock is held,
// also none that a journal in doubt or a request without an answer may stand for. One
// goroutine looks, as a look waits for what is under way.
type idler struct {
	after   atomic.Int64 // time.Duration; 0 for never
	changed chan struct{}
	// busy says whether somebody uses the daemon now; uses grows with each use.
	busy func() (now bool, uses uint64)
	// retire ends it for good, unless somebody has come meanwhile.
	retire func(context.Context) bool

	cancel  context.CancelFunc
	work    sync.WaitGroup
	retired chan struct{} // closed when retire has said yes
}

// The time between two looks is a tenth of the whole, within these bounds.
const minLook, maxLook = 50 * time.Millisecond, time.Second

func newIdler(after time.Duration, busy func() (bool, uint64), retire func(context.Context) bool) *idler {
	d := &idler{changed: make(chan struct{}, 1), busy: busy, retire: retire, retired: make(chan struct{})}
	d.after.Store(int64(after))
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	d.work.Go(func() { d.run(ctx) })
	return d
}

// set changes the time, which begins anew. 0 is never.
func (d *idler) set(after time.Duration) {
	d.after.Store(int64(after))
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// end stops looking, and reports whether the daemon has retired.
func (d *idler) end() (retired bool) {
	if d == nil {
		return false
	}
	d.cancel()
	d.work.Wait()
	select {
	case <-d.retired:
		return true
	default:
		return false
	}
}

func (d *idler) run(ctx context.Context) {
	since := time.Now()
	_, last := d.busy()
	for {
		after := time.Duration(d.after.Load())
		var look <-chan time.Time
		var timer *time.Timer
		if after > 0 {
			timer = time.NewTimer(min(max(after/10, minLook), maxLook))
			look = timer.C
		}
		select {
		case <-ctx.Done():
		case <-d.changed:
			since = time.Now()
		case <-look:
			now, uses := d.busy()
			switch {
			case now || uses != last:
				since, last = time.Now(), uses
			case time.Since(since) >= after:
				if d.retire(ctx) {
					close(d.retired)
					return
				}
				since = time.Now()
			}
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// inUse is the busy of an idler.
func (i *instance) inUse() (now bool, uses uint64) {
	st := i.server.Stats()
	now, uses = st.Clients > 0, st.Accepted
	if a := i.admin.Load(); a != nil {
		st := a.server.Stats()
		now, uses = now || st.Clients > 0, uses+st.Accepted
	}
	return now || !i.empty(), uses
}

// empty says that nothing is held on this host, and that nothing may be.
func (i *instance) empty() bool {
	return len(i.locks.Holders()) == 0 && i.locks.AllTakenBack() == nil && i.backend.Unsettled() == 0 && !i.doubt.inDoubt()
}

// retire stops serving if nobody uses the daemon. Who connects just then is served, by
// this daemon, or by the one that he starts as there is no socket: the file is taken away
// first, and then the last who was in time is looked for. Who had found the file by then, and
// connects later, is one of lateComers. A socket of systemd's stays, and who waits there has
// systemd start the next daemon.
func (i *instance) retire(ctx context.Context) bool {
	return i.server.Retire(ctx, func(l *net.UnixListener) bool {
		if !i.empty() {
			return false
		}
		if i.given.activated {
			return true
		}
		away := i.cfg.Socket + ".idle"
		l.SetUnlinkOnClose(false)
		if err := os.Rename(i.cfg.Socket, away); err != nil {
			return true // somebody has removed it: nobody can come
		}
		if waits(l) {
			if err := os.Rename(away, i.cfg.Socket); err != nil {
				i.log.Error("the socket cannot be put back, and nobody can connect: start vmlockd again, locks stay held", "socket", i.cfg.Socket, "reason", err)
			}
			l.SetUnlinkOnClose(!i.inherited)
			return false
		}
		os.Remove(away)
		return true
	})
}

// lateComers are those who had found the socket's file before it was taken away, and connected when it was
// looked for the last time whether somebody waits. Nobody does after that: it is not listened any more.
func (i *instance) lateComers() (list []*net.UnixConn) {
	if retired := i.idle.end(); !retired || i.given.activated {
		return nil
	}
	raw, err := i.again.SyscallConn()
	if err != nil {
		return nil
	}
	err = raw.Control(func(fd uintptr) {
		// From here on connecting is refused, and what waits can still be accepted (unix_stream_connect and
		// unix_accept in net/unix/af_unix.c).
		if err = unix.Shutdown(int(fd), unix.SHUT_RD); err != nil {
			return
		}
		for {
			var accepted int
			if accepted, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err != nil {
				return
			}
			f := os.NewFile(uintptr(accepted), "")
			conn, err := net.FileConn(f)
			f.Close()
			if err == nil {
				list = append(list, conn.(*net.UnixConn))
			}
		}
	})
	// EINVAL: none is left, and it is not listened any more.
	if err != nil && err != unix.EINVAL && err != unix.EAGAIN {
		i.log.Warn("it cannot be looked whether somebody has connected just now", "reason", err)
	}
	return list
}

func closeAll(list []*net.UnixConn) {
	for _, c := range list {
		c.Close()
	}
}

// waits says whether somebody waits to be accepted, also if that cannot be known.
func waits(l *net.UnixListener) bool {
	raw, err := l.SyscallConn()
	if err != nil {
		return true
	}
	n := 1
	err = raw.Control(func(fd uintptr) {
		if ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err == nil {
			n = ready
		}
	})
	return err != nil || n != 0
}
