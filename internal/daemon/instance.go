package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/audit"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/metrics"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// stopTimeout bounds each step of stopping; the kernel may hold a request for as
// long as it likes.
const stopTimeout = 5 * time.Second

// reserve is how many connections are served beyond every limit, for releases
// only. libvirt opens one for each.
const reserve = 16

// restoreTimeout bounds how long locks are taken back. Adoption waits for nobody
// in the cluster, so this is about a kernel that does not answer at all.
const restoreTimeout = time.Minute

// restoreGC is GOGC while locks are taken back: the heap of a process that has
// just started doubles several times until 10,000 are in it.
const restoreGC = 800

// backend is what both backends offer beyond locking.
type backend interface {
	locking.Backend
	locking.Restorer
	// Replaceable is nil if another program can take over now.
	Replaceable() error
	// Close lets go of the backend; it returns when ctx ends at the latest. Locks
	// stay held. With leave this host holds none, and means to take no more.
	Close(ctx context.Context, leave bool) error
	unexplained
	// Keep is Close for a process in which another program goes on with what it
	// returns, which is nothing if the locks have to be taken back. Unless whole, that
	// program could not go on with it, or calls are under way.
	Keep(ctx context.Context, whole bool) (keptLocks, error)
}

// instance is all parts of one daemon, from start to stop or handover.
type instance struct {
	log       *slog.Logger
	cfg       config.Config
	backend   backend
	journal   *journal.Journal
	gifts     *journal.Gifts // nil until the journal is open
	locks     *locking.Manager
	version   string
	metrics   *metrics.Metrics
	starts    metrics.Starts
	hide      context.CancelFunc // ends showing metrics on loopback
	audit     *audit.Log
	events    control.Events
	drain     *drainer
	disks     *disks
	others    *others   // nil in local mode, and without corosync's libraries
	guard     *guarding // nil where nothing is guarded
	parting   bool      // guard is there only to take back what an earlier vmlockd has promised, or could not
	leftover  *leftover // nil if there is none
	admission admission
	control   *control.Server                 // nil if it is not served
	admin     atomic.Pointer[admin]           // nil if it is not served
	table     atomic.Pointer[locking.Manager] // locks, for parts that were made before it
	server    *rpc.Server
	listener  *net.UnixListener
	given     *given
	inherited bool // the listener was somebody else's first, and its file stays
	idle      *idler
	beat      *beater         // nil if nobody listens
	again     *os.File        // the listener once more, for who goes on with it: then there may be no descriptor left
	late      []*net.UnixConn // who connected while it was retiring; set by stop
	serving   sync.WaitGroup
	tidy      *tidier
	failed    chan error   // what made serving end by itself
	waiting   atomic.Value // string: the part that is being closed
	doubt     *doubter     // nil until the journal is open
	reminder  *reminder    // nil where libvirt's notes are not known
}

// start brings up everything, with the connections of an earlier instance if
// there was one. When it returns requests are served.
func start(c config.Config, version string, log *slog.Logger, from *state, g *given) (i *instance, err error) {
	i = &instance{log: log, cfg: c, version: version, given: g, failed: make(chan error, 1), tidy: newTidier()}
	defer func() {
		if err != nil {
			i.abandon(from)
		}
	}()
	if err := from.sameLocks(c); err != nil {
		return i, err
	}
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		return i, fmt.Errorf("make run_dir: %w", err)
	}
	boot, err := journal.BootID()
	if err != nil {
		return i, err
	}
	if err := noOtherLocks(c, boot); err != nil {
		return i, err
	}
	// All that is read now stays, so collecting meanwhile finds little and delays the
	// first answer. What is left over goes when that was given.
	percent := debug.SetGCPercent(restoreGC)
	i.tidy.did(0, func() { debug.SetGCPercent(percent) })
	// Before anything is joined: whoever is killed after that has a journal.
	found, err := i.openJournal(boot)
	if err != nil {
		return i, err
	}
	gaveBack := i.openGifts(boot)
	// Nor later than this: once this start has joined, the next one would find its lockspace.
	if err := i.judgeLockspace(&found); err != nil {
		return i, err
	}
	if err := from.virtlockd().noteFiles(c, i.journal, &found); err != nil {
		return i, err
	}
	i.disks = newDisks(c)
	i.others = meetOthers(c, version, i, i.disks, log)
	i.admission.off = !guarded(c)
	if i.backend, err = newBackend(c, log, i.holders, i.disks, i.others, i.admission.admit, from.keptLocks(), from.closer()); err != nil {
		return i, err
	}
	if b, ok := i.backend.(dlmLocks); ok {
		i.tidy.until(b.Publishing)
	}
	if err := i.startGuard(boot); err != nil {
		return i, err
	}
	if err := from.keptLocks().discard(); err != nil {
		log.Warn("the locks of the earlier program's backend were not closed in time", "reason", err)
	}
	if from != nil {
		from.kept = keptLocks{} // the backend has them now
	}
	if err := i.judgeJournal(&found); err != nil {
		return i, err
	}
	i.makeMetrics()
	i.reminder = newReminder(c.Socket, i.observe())
	i.locks = locking.New(locking.Options{
		Backend:        i.backend,
		Processes:      owner.Processes{},
		Observe:        i.observe(),
		RequestTimeout: time.Duration(c.RequestTimeout),
		AnyLockspace:   c.Backend == config.BackendCluster,
		Journal:        i.journal,
		Later:          tellLater(log),
		Witness:        i.reminder,
		Gifts:          i.keptGifts(),
	})
	i.table.Store(i.locks)
	i.drain = openDrainer(c.RunDir, i.locks, i.others.drains, log)
	taker, err := from.virtlockd().noteDisks(c, i.backend, i.journal, &found, log)
	if err != nil {
		return i, err
	}
	if taker == nil {
		taker = goOnTaking(c, i.backend, &found, log)
	}
	if taker != nil {
		i.takeBack(found, taker)
	} else {
		i.takeBack(found, i.backend)
	}
	i.locks.RestoreGivenBack(gaveBack)
	i.tellEndings()
	i.guard.run()
	if i.part(); !i.parting {
		i.disarmLeft(boot)
	}
	taken := taker == nil || taker.takeNow(i.locks, log)
	if v := from.virtlockd(); v != nil {
		if !taken {
			v.open = nil // as long as this process lives they keep others of this host out
		}
		if err := i.incomplete(); err != nil {
			log.Error("the locks of virtlockd would end with this process", "event", "holder-incomplete", "locks", len(v.entries), "reason", err)
		}
	}
	if i.listener, err = from.listen(c.Socket, g); err != nil {
		return i, err
	}
	if i.again, err = i.listener.File(); err != nil {
		return i, err
	}
	i.inherited = g.activated || from != nil
	g.listening()
	from.done()
	i.server = rpc.NewServer(rpc.Options{
		Programs:   []rpc.Program{lockprogram.New(i.locks)},
		MaxClients: c.MaxClients,
		Reserve:    reserve,
		LastID:     from.lastID(),
		Log:        log,
		Allow:      allowed(os.Geteuid()),
	})
	if err := i.server.Adopt(from.connections()); err != nil {
		log.Warn("not every connection could be kept across the restart", "reason", err)
	}
	i.serving.Go(func() { i.failed <- i.server.Serve(context.Background(), i.listener) })
	for _, late := range g.late {
		i.server.ServeConn(late)
	}
	g.late = nil
	from.virtlockd().done(log)
	i.showMetrics(from != nil)
	i.openAudit()
	i.startControl()
	i.reminder.begin(i.locks)
	i.idle = newIdler(time.Duration(c.IdleTimeout), i.inUse, i.retire)
	i.startAdmin(from)
	i.beat = i.newBeater()
	return i, nil
}

// abandon undoes a start that failed. It releases nothing, and from is what it was,
// as far as that is possible.
func (i *instance) abandon(from *state) {
	if i.listener != nil {
		i.listener.Close()
	}
	if i.again != nil {
		i.again.Close()
	}
	i.within("the group of lock daemons", i.others.close)
	i.within("the guard", func(ctx context.Context) error { return i.guard.close(ctx, false) })
	i.leftover.close(from == nil)
	if from == nil {
		i.close(false)
		return
	}
	quiet := i.closeLocks()
	if from.virtlockd() != nil && i.backend != nil {
		_ = i.incomplete() // so that the next start finds all of it
	}
	i.keep(from, quiet)
}

// stop ends the instance for good. Locks that are held stay held.
func (i *instance) stop() {
	i.idle.end()
	i.beat.stop()
	i.hide()
	i.stopControl()
	i.stopAdmin()
	i.within("the group of lock daemons", i.others.close)
	i.within("the connections", i.server.Shutdown)
	i.serving.Wait()
	i.reminder.stop() // what is held is looked at below
	i.late = i.lateComers()
	i.again.Close()
	// Before it is looked who holds what, so that what they held is given back in order.
	i.awaitEndings(context.Background())
	i.noteStop()
	i.waiting.Store("processes that are stopped")
	i.guard.settle()
	heard := true
	if len(i.owners()) > 0 || i.doubt.inDoubt() {
		i.waiting.Store("the other hosts, which are told that nothing guards this one any more")
		heard = i.guard.withdraw("stopping")
	}
	held, guarded := i.locks.Holders(), i.owners() // the guard may have ended some
	leaving := len(guarded) == 0 && !i.doubt.inDoubt()
	if leaving {
		i.guard.leave()
	}
	i.within("the guard", func(ctx context.Context) error { return i.guard.close(ctx, heard || leaving) })
	i.leftover.close(true)
	if len(guarded) > 0 && i.guard != nil && heard {
		i.log.Warn("nothing guards the virtual machines of this host until vmlockd is started again, and other hosts are told so", "owners", len(guarded))
	}
	if len(held) > 0 {
		i.warnIncomplete(len(held))
		i.log.Warn("stopping while locks are held: they stay held, nobody else can use these disks, and vmlockd takes the locks back when it is started again", "event", "stopped-holding", "locks", len(held))
	}
	// With a damaged journal there may be locks that nobody here knows of, and
	// leaving the lockspace would end them.
	i.close(len(held) == 0 && !i.doubt.inDoubt())
}

// close lets go of everything below the server.
func (i *instance) close(leave bool) {
	i.closeLocks()
	i.closeBackend(func(ctx context.Context) error { return i.backend.Close(ctx, leave) })
}

// closeLocks reports whether nothing is under way any more.
func (i *instance) closeLocks() (quiet bool) {
	i.tidy.stop()
	i.reminder.stop()
	return i.locks == nil || i.within("the lock table", i.locks.Close)
}

func (i *instance) closeBackend(f func(context.Context) error) {
	closed := i.backend == nil || i.within("the backend", f)
	// While the kernel still works for this process the next one must not begin,
	// and it is the journal that makes it wait.
	if i.journal != nil && closed {
		if err := i.gifts.Close(); err != nil {
			i.log.Warn("could not close what keeps what was given back", "reason", err)
		}
		if err := i.journal.Close(); err != nil {
			i.log.Warn("could not close the journal", "reason", err)
		}
	}
}

func (i *instance) within(what string, f func(context.Context) error) (done bool) {
	i.waiting.Store(what)
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err := f(ctx)
	if err != nil {
		i.log.Warn("could not close "+what+" in time, going on without", "reason", err)
	}
	return err == nil
}

// handOver stops the instance between two calls of each connection, and returns
// what the next one, which knows that version of it, needs to go on with them.
// Locks stay held.
func (i *instance) handOver(version int) *state {
	// These first, while requests are still served.
	i.beat.stop()
	i.stopControl()
	i.within("the group of lock daemons", i.others.close)
	i.hide()
	i.listener.SetUnlinkOnClose(false)
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	admin := i.handOverAdmin(ctx, version)
	list, err := i.server.Handover(ctx)
	if err != nil {
		i.log.Warn("not every connection can be kept across the restart", "reason", err)
	}
	i.serving.Wait()
	// Not earlier: without it nothing is granted. The next one grants to who waits.
	i.within("the guard", func(ctx context.Context) error { return i.guard.close(ctx, false) })
	i.leftover.close(false)
	s := &state{
		Version: version, Socket: i.cfg.Socket, RunDir: i.cfg.RunDir, Backend: i.cfg.Backend, Lockspace: lockspaceOf(i.cfg),
		LastID: i.server.LastID(), VirtAdmin: admin,
		listener: i.again, handovers: list, given: i.given,
	}
	var bad error
	if s.Config, bad = i.cfg.Keep(); bad != nil {
		i.log.Error("the configuration cannot be kept", "reason", bad)
	}
	// A call that has not ended may yet change what is held.
	quiet := i.closeLocks() && err == nil
	i.keep(s, quiet)
	return s
}

// keep closes the backend and the journal, and gives s what can be kept of them.
func (i *instance) keep(s *state, quiet bool) {
	i.closeBackend(func(ctx context.Context) (err error) {
		s.kept, err = i.backend.Keep(ctx, quiet && s.Version >= stateLocks)
		return err
	})
	if b, ok := i.backend.(dlmLocks); ok {
		s.Closer = b.last.PID()
	}
}
