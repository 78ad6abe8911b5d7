package dlm

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// asked is what a process had asked about these resources when it ended; the kernel has none of it, or the results were
// lost.
func asked(t *testing.T, names ...string) *UnderWay {
	t.Helper()
	u := newUnderWay(t)
	for i, name := range names {
		u.begin(uint64(i+1), name)
	}
	return u
}

// nextRequest is what a drain writes.
func nextRequest(kernel *os.File) (abi.Request, error) {
	buf := make([]byte, abi.RequestMax)
	n, err := kernel.Read(buf)
	if err != nil {
		return abi.Request{}, err
	}
	r, err := abi.DecodeRequest(buf[:n])
	if err == nil && (r.Lock.Castaddr == 0 || r.Lock.Lksb == 0) {
		err = fmt.Errorf("the kernel refuses %+v (device_user_lock, fs/dlm/user.c)", r)
	}
	return r, err
}

func answer(t *testing.T, kernel *os.File, r abi.Request, status int32, lkid uint32) {
	t.Helper()
	send(t, kernel, abi.EncodeResult(abi.LockResult{
		UserAstaddr: r.Lock.Castaddr, UserAstparam: r.Lock.Castparam, Lksb: abi.Lksb{Status: status, Lkid: lkid},
	}, nil))
}

// What the kernel never saw is not waited for, for a minute: what is asked later is answered.
func TestDrainAsksAgain(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	failed := make(chan error, 1)
	go func() {
		failed <- func() error {
			wanted := map[string]bool{"a": true, "b": true}
			for lkid := range uint32(2) {
				r, err := nextRequest(kernel)
				if err != nil {
					return err
				}
				if r.Cmd != abi.CmdLock || Mode(r.Lock.Mode) != NL || r.Lock.Flags != abi.FlagExpedite || !wanted[r.Name] {
					return fmt.Errorf("asked for %+v", r)
				}
				delete(wanted, r.Name)
				answer(t, kernel, r, 0, lkid+7)
			}
			for lkid := range uint32(2) {
				r, err := nextRequest(kernel)
				if err != nil {
					return err
				}
				if r.Cmd != abi.CmdUnlock || r.Lock.Lkid != lkid+7 {
					return fmt.Errorf("asked for %+v", r)
				}
				answer(t, kernel, r, abi.StatusUnlock, r.Lock.Lkid)
			}
			return nil
		}()
	}()
	begin := time.Now()
	if err := DrainFile(t.Context(), device, asked(t, "a", "b", "a"), func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > drainQuiet/2 {
		t.Errorf("waited for %v", took)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// As long as one of what it has asked has no answer, neither may what was asked before.
func TestDrainWaitsForItsOwn(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]func(kernel *os.File, r abi.Request){
		"no answer":    func(*os.File, abi.Request) {},
		"refused":      func(kernel *os.File, r abi.Request) { answer(t, kernel, r, -int32(syscall.EINVAL), 1) },
		"not released": func(kernel *os.File, r abi.Request) { answer(t, kernel, r, 0, 1) },
		"of another":   func(kernel *os.File, r abi.Request) { r.Lock.Castparam += 100; answer(t, kernel, r, 0, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			device, kernel := pair(t)
			go func() {
				if r, err := nextRequest(kernel); err == nil {
					last(kernel, r)
				}
			}()
			const quiet = drainDoubt + 500*time.Millisecond
			begin := time.Now()
			if err := drainFile(t.Context(), device, asked(t, "a"), func() (bool, error) { return true, nil }, quiet); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took < quiet {
				t.Errorf("waited for %v only", took)
			}
		})
	}
}

// After a recovery the kernel may answer in another order.
func TestDrainAsksAfterRecovery(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	var first, second abi.Request
	stopped := false
	var begin time.Time
	err := DrainFile(t.Context(), device, asked(t, "a"), func() (bool, error) {
		if begin.IsZero() {
			begin = time.Now()
		}
		_ = kernel.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		r, err := nextRequest(kernel)
		switch {
		case err != nil:
		case first.Cmd == 0:
			first, stopped = r, true
			return false, nil
		case r.Cmd == abi.CmdUnlock:
			if r.Lock.Castparam != second.Lock.Castparam {
				t.Errorf("released %+v", r)
			}
			answer(t, kernel, r, abi.StatusUnlock, r.Lock.Lkid)
		default:
			second = r
			answer(t, kernel, first, 0, 1) // too late to count
			answer(t, kernel, r, 0, 2)
		}
		return true, nil
	})
	if err != nil || !stopped || second.Name != "a" || second.Lock.Castparam == first.Lock.Castparam {
		t.Errorf("%v; asked for %+v and, after a recovery, for %+v", err, first, second)
	}
}

// The results of one lock, of which there can be two, do not stand for that of another one; nor
// does what another process has asked for.
func TestDrainKnowsWhoseResults(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	send(t, kernel, result(1, castAddr, 0), result(1, castAddr, abi.StatusUnlock), result(99, castAddr, 0))
	done := make(chan error, 1)
	go func() {
		r, err := nextRequest(kernel) // so it did not take these for all
		if err == nil && r.Name != "b" && r.Name != "a" {
			err = fmt.Errorf("asked for %+v", r)
		}
		send(t, kernel, result(2, castAddr, 0))
		done <- err
	}()
	if err := DrainFile(t.Context(), device, asked(t, "a", "b"), func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
	kernel.Close() // or nobody has asked
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A request in doubt may be with the kernel all the same.
func TestDrainAsksAboutDoubtful(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	u := asked(t, "a")
	u.doubt(1)
	const quiet = drainDoubt + 500*time.Millisecond
	begin := time.Now()
	if err := drainFile(t.Context(), device, u, func() (bool, error) { return true, nil }, quiet); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < quiet {
		t.Errorf("waited for %v only", took)
	}
	if r, err := nextRequest(kernel); err != nil || r.Name != "a" {
		t.Errorf("asked for %+v, %v", r, err)
	}
}

// While a write is held up, a recovery takes place.
func TestDrainWriteHeldUp(t *testing.T) {
	device, kernel := pair(t)
	_ = kernel
	d := newDrain(device, asked(t, "a"))
	d.barrier = &barrier{f: device, waiting: map[uint64]struct{}{}, heldUp: true}
	if !d.forget() || d.barrier != nil {
		t.Error("it counts")
	}
	if d.ask() || d.barrier == nil || d.barrier.passed() || d.ask() {
		t.Error("asked at once, and nobody has answered yet")
	}
}

func TestDrainLeftLockspace(t *testing.T) {
	device, _ := pair(t)
	if err := DrainFile(t.Context(), device, asked(t, "a"), func() (bool, error) { return false, ErrNoLockspace }); err != nil {
		t.Error(err)
	}
}

func TestUnderWayNames(t *testing.T) {
	u := newUnderWay(t)
	a, b := u.begin(1, "a"), u.begin(2, "b")
	u.end(a)
	if names, cookies, err := u.requests(); err != nil || len(names) != 1 || names[0] != "b" || len(cookies) != 1 {
		t.Errorf("names %q, cookies %v, %v", names, cookies, err)
	}
	var all []int32
	for n := range places + 3 {
		all = append(all, u.begin(uint64(n+3), fmt.Sprint(n)))
	}
	if _, _, err := u.requests(); err == nil {
		t.Error("the names of more requests are known than there is room for")
	}
	if n, _ := u.Count(); n != places+4 {
		t.Errorf("%d under way", n)
	}
	for _, place := range all {
		u.end(place)
	}
	u.end(b)
	if names, _, err := u.requests(); err != nil || len(names) != 0 {
		t.Errorf("names %q, %v", names, err)
	}
	copy(u.mem[placesAt:], []byte{0xff, 0xff, 0xff, 0xff})
	u.begin(5000, "c")
	if _, _, err := u.requests(); err == nil {
		t.Error("a name longer than names are is taken for one")
	}
	if _, err := NewUnderWay(make([]byte, UnderWaySize-1)); err == nil {
		t.Error("too little memory is enough")
	}
}

// A page that a process shares reads as it was left.
func TestUnderWayOfAnother(t *testing.T) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, UnderWaySize); err != nil {
		t.Fatal(err)
	}
	open := func(prot int) *UnderWay {
		mem, err := unix.Mmap(fd, 0, UnderWaySize, prot, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(mem) })
		u, err := NewUnderWay(mem)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	mine, theirs := open(unix.PROT_READ|unix.PROT_WRITE), open(unix.PROT_READ)
	mine.begin(7, "a")
	mine.doubt(1)
	n, doubtful := theirs.Count()
	names, cookies, err := theirs.requests()
	if _, ok := cookies[7]; err != nil || n != 1 || doubtful != 1 || len(names) != 1 || names[0] != "a" || !ok {
		t.Errorf("%d under way, %d doubtful, %q, %v, %v", n, doubtful, names, cookies, err)
	}
}
