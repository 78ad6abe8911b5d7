package daemon

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/domstatus"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// The files in testdata/forgotten are what libvirt 9.0 wrote of two virtual machines, one version after the other, as a
// disk was attached and detached, and so on; without the list of what QEMU can do. The second one was to be migrated.
func noted(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "forgotten", name+".xml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// givenBack is a lock of the virtual machine in a note.
func givenBack(t *testing.T, text, lockspace, name string) locking.GivenBack {
	t.Helper()
	s, err := domstatus.ParseStatus([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	o := locking.Owner{PID: int32(s.PID), Name: s.Domain.Name}
	if _, err := hex.Decode(o.UUID[:], []byte(strings.ReplaceAll(s.Domain.UUID, "-", ""))); err != nil {
		t.Fatal(err)
	}
	return locking.GivenBack{Owner: o, Ref: locking.Ref{Lockspace: lockspace, Name: name}}
}

// TestJudge has for each thing that libvirt does with a virtual machine, and for each of its disks before and after, what it
// means if that disk's lock was given back before the note was written.
func TestJudge(t *testing.T) {
	const dir = "/srv/shared/"
	for _, test := range []struct {
		note string
		want map[string]judgement
	}{
		{"booted", map[string]judgement{"cap.img": forgotten, "capx.img": unneeded}},
		// A disk that was attached and could not be, or that was detached, is not noted.
		{"attached", map[string]judgement{"cap.img": forgotten, "capx.img": forgotten}},
		{"detached", map[string]judgement{"cap.img": forgotten, "capx.img": unneeded}},
		// virsh suspend, resume.
		{"suspended", map[string]judgement{"cap.img": undecided, "capx.img": unneeded}},
		{"resumed", map[string]judgement{"cap.img": forgotten}},
		// virsh dump pauses it, or, with --live, at the end only; the note says that it runs.
		{"dump", map[string]judgement{"cap.img": undecided}},
		{"dump-live", map[string]judgement{"cap.img": undecided}},
		// virsh snapshot-create-as --disk-only: the image of before is below the new one then, and is not written.
		{"snapshot-begun", map[string]judgement{"cap.img": undecided, "cap.overlay": undecided}},
		{"snapshot", map[string]judgement{"cap.img": unneeded, "cap.overlay": forgotten}},
		// virsh blockcommit --active --pivot: the image below is written, and is the disk after the pivot.
		{"commit-begun", map[string]judgement{"cap.img": unneeded, "cap.overlay": forgotten}},
		{"commit-pivoted", map[string]judgement{"cap.img": forgotten, "cap.overlay": unneeded}},
		// virsh blockpull: what was below is needed no more.
		{"pulled", map[string]judgement{"cap.overlay2": forgotten, "cap.img": unneeded}},
		// virsh blockcopy --pivot.
		{"copy-begun", map[string]judgement{"cap.overlay2": forgotten, "cap.copy": unneeded}},
		{"copy-pivoted", map[string]judgement{"cap.copy": forgotten, "cap.overlay2": unneeded}},
		// A snapshot with memory pauses it.
		{"memory-snapshot-begun", map[string]judgement{"cap.copy": undecided}},
		{"memory-snapshot-overlay", map[string]judgement{"cap.copy": undecided, "cap.overlay3": undecided}},
		{"memory-snapshot", map[string]judgement{"cap.copy": unneeded, "cap.overlay3": forgotten}},
		{"save", map[string]judgement{"cap.overlay3": undecided}},
		// A migration that is aborted at the hand-over: only at the end has libvirt forgotten the lock. Until then the
		// receiver may be about to take it.
		{"migration-begin", map[string]judgement{"turner.img": undecided}},
		{"migration-perform", map[string]judgement{"turner.img": undecided}},
		{"migration-stopped", map[string]judgement{"turner.img": undecided}},
		{"migration-aborted", map[string]judgement{"turner.img": undecided}},
		{"migration-forgotten", map[string]judgement{"turner.img": forgotten}},
	} {
		text := noted(t, test.note)
		for name, want := range test.want {
			if got := judge([]byte(text), givenBack(t, text, "", dir+name)); got != want {
				t.Errorf("%s: %s is %d, want %d", test.note, name, got, want)
			}
			hashed := givenBack(t, text, "/var/lib/libvirt/lockd/files", domstatus.Hashed(dir+name))
			if got := judge([]byte(text), hashed); got != want {
				t.Errorf("%s: the hash of %s is %d, want %d", test.note, name, got, want)
			}
		}
	}
}

// TestJudgeOther is about notes with something else in them.
func TestJudgeOther(t *testing.T) {
	const disk = "/srv/shared/cap.img"
	note := noted(t, "booted")
	replaced := func(old, by string) string {
		t.Helper()
		if !strings.Contains(note, old) {
			t.Fatalf("the note has no %q", old)
		}
		return strings.Replace(note, old, by, 1)
	}
	lease := replaced("</disk>", "</disk><lease><lockspace>space</lockspace><key>role</key><target path='/leases'/></lease>")
	for what, test := range map[string]struct {
		text, lockspace, name string
		want                  judgement
	}{
		"of another process":          {replaced("pid='975'", "pid='976'"), "", disk, undecided},
		"of another virtual machine":  {replaced("122869f5", "022869f5"), "", disk, undecided},
		"cut short":                   {note[:len(note)-20], "", disk, undecided},
		"empty":                       {"", "", disk, undecided},
		"not of a running one":        {"<domain><name>cap</name></domain>", "", disk, undecided},
		"being ended":                 {replaced("<devices>", "<job type='destroy' async='none'/><devices>"), "", disk, undecided},
		"a backup":                    {replaced("<devices>", "<job type='none' async='backup'/><devices>"), "", disk, undecided},
		"no job":                      {replaced("<devices>", "<job type='none' async='none'/><devices>"), "", disk, forgotten},
		"crashed":                     {replaced("state='running'", "state='crashed'"), "", disk, undecided},
		"suspended by the guest":      {replaced("state='running'", "state='pmsuspended'"), "", disk, undecided},
		"read-only":                   {replaced("<backingStore/>", "<backingStore/><readonly/>"), "", disk, unneeded},
		"a CD drive":                  {replaced("device='disk'", "device='cdrom'"), "", disk, unneeded},
		"a floppy drive":              {replaced("device='disk'", "device='floppy'"), "", disk, forgotten},
		"a drive without a disk":      {replaced("<source file='"+disk+"' index='1'>", "<source>"), "", disk, unneeded},
		"a lease":                     {lease, "/leases/space", "role", forgotten},
		"a lease of another space":    {lease, "/leases", "role", unneeded},
		"a disk and a lease's space":  {lease, "/leases/space", disk, unneeded},
		"a path in a directory":       {note, "/var/lib/libvirt/lockd/files", disk, unneeded},
		"a hash without a directory":  {note, "", domstatus.Hashed(disk), unneeded},
		"a block device by an id":     {replaced("type='file' device='disk'", "type='block' device='disk'"), "/lvm", "uuid", unneeded},
		"a block device by its LVM's": {strings.Replace(replaced("type='file' device='disk'", "type='block' device='disk'"), "file='"+disk+"'", "dev='/dev/vg/a'", 1), "/lvm", "uuid", undecided},
		"a volume":                    {strings.Replace(replaced("type='file' device='disk'", "type='volume' device='disk'"), "file='"+disk+"'", "pool='p' volume='v'", 1), "", disk, undecided},
	} {
		if got := judge([]byte(test.text), givenBack(t, note, test.lockspace, test.name)); got != test.want {
			t.Errorf("%s: %d, want %d", what, got, test.want)
		}
	}
}

// reminded is a reminder beside a Manager, which looks when it is told to.
type reminded struct {
	*reminder
	t      *testing.T
	m      *locking.Manager
	b      *locktest.Backend
	ps     *locktest.Processes
	now    time.Time
	events []locking.Event
}

const forgottenDisk = "/srv/shared/turner.img"

func newReminded(t *testing.T) *reminded {
	w := &reminded{t: t, b: locktest.NewBackend(t), ps: locktest.NewProcesses(t), now: time.Unix(1e9, 0)}
	observe := func(e locking.Event) { w.events = append(w.events, e) }
	w.reminder = newReminder(filepath.Join(t.TempDir(), "virtlockd-sock"), observe)
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.b.Point(locking.Ref{Name: forgottenDisk}, "disk")
	w.m = locking.New(locking.Options{Backend: w.b, Processes: w.ps, Witness: w.reminder, Observe: observe})
	w.locks = w.m // and not begin: it would look by itself
	t.Cleanup(func() { _ = w.m.Close(context.Background()) })
	return w
}

// write makes libvirt write a note, and returns a registration of its owner.
func (w *reminded) write(name string) {
	w.t.Helper()
	text := noted(w.t, name)
	file := filepath.Join(w.dir, givenBack(w.t, text, "", "").Owner.Name+".xml")
	err := os.WriteFile(file+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Rename(file+".new", file) // as virXMLSaveFile does
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// register speaks for the virtual machine that is migrated; its process runs.
func (w *reminded) register() (*locking.Registration, *locktest.Process) {
	w.t.Helper()
	o := givenBack(w.t, noted(w.t, "migration-begin"), "", "").Owner
	p := w.ps.Start(o.PID)
	g, err := w.m.Register(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(g.Close)
	return g, p
}

// other is another virtual machine here.
func (w *reminded) other() *locking.Registration {
	w.t.Helper()
	w.ps.Start(7)
	g, err := w.m.Register(locking.Owner{PID: 7, Name: "thief"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(g.Close)
	return g
}

func (w *reminded) do(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *reminded) acquire(g *locking.Registration) {
	w.t.Helper()
	w.do(g.Acquire(context.Background(), locking.Ref{Name: forgottenDisk}, locking.Exclusive, false))
}

func (w *reminded) release(g *locking.Registration) {
	w.t.Helper()
	w.do(g.Release(context.Background(), locking.Ref{Name: forgottenDisk}))
}

// gaveBack registers a virtual machine whose lock libvirt gives back while it notes that a migration begins.
func (w *reminded) gaveBack() (*locking.Registration, *locktest.Process) {
	w.t.Helper()
	g, p := w.register()
	w.write("migration-begin")
	w.acquire(g)
	w.release(g)
	return g, p
}

// after looks when a time has passed, and wants the lock held by so many, and so many given back.
func (w *reminded) after(d time.Duration, what string, held, back int) {
	w.t.Helper()
	w.now = w.now.Add(d)
	w.look(w.now)
	if h, b := len(w.m.Holders()), len(w.m.GivenBack()); h != held || b != back {
		w.t.Errorf("%s: %d hold it, want %d; %d have given it back, want %d", what, h, held, b, back)
	}
}

// told says how often an event was told.
func (w *reminded) told(kind locking.EventKind, want int) {
	w.t.Helper()
	n := 0
	for _, e := range w.events {
		if e.Kind == kind {
			n++
		}
	}
	if n != want {
		w.t.Errorf("event %d was told %d times, want %d", kind, n, want)
	}
}

// TestReminder goes through the abort of a migration at its hand-over, as it was seen.
func TestReminder(t *testing.T) {
	w := newReminded(t)
	g, p := w.register()
	w.write("migration-begin")
	w.acquire(g)
	w.after(lookInterval, "before", 1, 0)
	w.write("migration-perform")
	w.release(g)
	if len(w.nudge) != 1 {
		t.Error("it is not told that it has to look")
	}
	w.after(lookInterval, "nothing written since", 0, 1)
	for _, note := range []string{"migration-stopped", "migration-aborted"} {
		w.write(note)
		w.after(lookInterval, note, 0, 1)
	}
	w.told(locking.TakenAgain, 0)
	w.write("migration-forgotten")
	w.after(lookInterval, "forgotten, for a moment", 0, 1)
	w.write("migration-stopped")
	w.after(lookInterval, "stopped again", 0, 1)
	w.write("migration-forgotten")
	w.after(lookInterval, "forgotten, at the first look", 0, 1)
	w.write("migration-forgotten")
	w.after(lookInterval, "forgotten, though there is another note", 1, 0)
	w.told(locking.TakenAgain, 1)

	// libvirt suspends it, and it resumes.
	w.release(g)
	w.after(lookInterval, "released", 0, 1)
	w.acquire(g)
	w.after(lookInterval, "acquired", 1, 0)

	// It is paused, and ends.
	w.release(g)
	w.after(lookInterval, "released again", 0, 1)
	p.Kill()
	until(t, "nothing is remembered of one that has ended", func() bool { return len(w.m.GivenBack()) == 0 })
	if w.look(w.now) {
		t.Error("it goes on looking")
	}
	w.told(locking.TakenAgain, 1)
	w.told(locking.NotTakenAgain, 0)
	w.b.CheckQuiet(nil)
}

// TestReminderHasNotSeen: what libvirt wrote before it gave the lock back says nothing of now.
func TestReminderHasNotSeen(t *testing.T) {
	w := newReminded(t)
	g, _ := w.register()
	w.write("migration-forgotten")
	w.acquire(g)
	w.release(g)
	w.after(lookInterval, "the note of before", 0, 1)
	w.write("migration-stopped")
	w.after(lookInterval, "another", 0, 1)
	w.write("migration-forgotten")
	w.after(lookInterval, "forgotten, at the first look", 0, 1)
	w.after(lookInterval, "forgotten", 1, 0)
}

// TestReminderNudged: what others give back meanwhile does not make it look any sooner, so that a note which libvirt
// replaces in a moment is not taken for two.
func TestReminderNudged(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newReminded(t)
		g, _ := w.register()
		w.write("migration-begin")
		w.acquire(g)
		w.begin(w.m)
		defer w.stop()
		w.release(g)
		fakeclock.Wait()
		w.write("migration-forgotten")
		for range 3 {
			w.GaveBack()
			fakeclock.Wait()
			if h := w.m.Holders(); len(h) != 0 {
				t.Fatalf("it is taken again at once: %v", h)
			}
		}
		for range 2 {
			time.Sleep(lookInterval) // by the bubble's clock: until the next look
			w.GaveBack()
			fakeclock.Wait()
		}
		if h := w.m.Holders(); len(h) != 1 {
			t.Errorf("it is not taken again: %v", h)
		}
	})
}

// TestReminderReleasedAgain: what a look has shown before the last release says nothing after it.
func TestReminderReleasedAgain(t *testing.T) {
	w := newReminded(t)
	g, _ := w.gaveBack()
	w.write("migration-forgotten")
	w.after(lookInterval, "forgotten, at the first look", 0, 1)
	if err := g.Release(context.Background(), locking.Ref{Name: forgottenDisk}); err == nil {
		t.Fatal("it had the lock")
	}
	w.write("migration-forgotten")
	w.after(lookInterval, "forgotten, at the first look after another release", 0, 1)
	w.after(lookInterval, "forgotten", 1, 0)
}

// TestReminderDetached: a disk that is gone is not one to remember.
func TestReminderDetached(t *testing.T) {
	w := newReminded(t)
	w.gaveBack()
	text := strings.Replace(noted(t, "migration-forgotten"), forgottenDisk, "/srv/shared/another.img", 1)
	w.do(os.WriteFile(filepath.Join(w.dir, "turner.xml"), []byte(text), 0o600))
	w.after(lookInterval, "detached", 0, 0)
	w.told(locking.TakenAgain, 0)
}

// TestReminderTooLate: another has the disk by then. That is told once, and shown for as long as it is so.
func TestReminderTooLate(t *testing.T) {
	w := newReminded(t)
	g, p := w.gaveBack()
	thief := w.other()
	w.acquire(thief)
	w.write("migration-forgotten")
	for range 100 {
		w.after(lookInterval, "another has it", 1, 1)
	}
	w.told(locking.NotTakenAgain, 1)
	w.told(locking.Refused, 0)
	list := w.warnings()
	if len(list) != 1 || list[0].Code != control.WarnTwoWriters {
		t.Fatalf("warnings: %v", list)
	}
	for _, part := range []string{"turner", "uuid 801cd72b-", "pid 1295", "virtual machine thief", forgottenDisk} {
		if !strings.Contains(list[0].Message, part) {
			t.Errorf("the warning does not say %q: %s", part, list[0].Message)
		}
	}
	w.release(thief)
	w.after(maxRetry, "the other has ended", 1, 0)
	w.told(locking.TakenAgain, 1)
	if list := w.warnings(); len(list) != 0 {
		t.Errorf("warnings: %v", list)
	}

	// If it happens once more it is told once more.
	w.release(g)
	w.acquire(thief)
	w.write("migration-stopped")
	w.after(lookInterval, "paused", 1, 1)
	w.write("migration-forgotten")
	w.after(lookInterval, "at the first look", 1, 1)
	w.after(lookInterval, "another has it again", 1, 1)
	w.told(locking.NotTakenAgain, 2)
	w.write("migration-stopped")
	w.after(lookInterval, "it is paused, and writes nothing", 1, 1)
	if list := w.warnings(); len(list) != 0 {
		t.Errorf("warnings: %v", list)
	}

	// The end of the one without the lock is the end of it, too.
	w.write("migration-forgotten")
	w.after(lookInterval, "at the first look", 1, 1)
	w.after(lookInterval, "it goes on", 1, 1)
	if list := w.warnings(); len(list) != 1 {
		t.Errorf("warnings: %v", list)
	}
	p.Kill()
	until(t, "nothing is remembered of one that has ended", func() bool { return len(w.m.GivenBack()) == 0 })
	w.after(lookInterval, "ended", 1, 0)
	if list := w.warnings(); len(list) != 0 {
		t.Errorf("warnings: %v", list)
	}
}

// TestReminderRetries: while nothing can be granted it is tried again, though not at each look.
func TestReminderRetries(t *testing.T) {
	w := newReminded(t)
	g, _ := w.gaveBack()
	w.write("migration-forgotten")
	w.b.Fail(locktest.On(locktest.OpLock, "disk"), syscall.EIO, 3)
	// At the second look, and 1, 2 and 4 seconds after the one before.
	for at, held := range []int{0, 0, 0, 0, 0, 0, 0, 0, 1} {
		w.after(lookInterval, fmt.Sprintf("look %d", at), held, 1-held)
	}
	w.told(locking.NotTakenAgain, 1)
	w.told(locking.TakenAgain, 1)

	// That another has it by the time is told as well.
	w.release(g)
	w.b.Fail(locktest.On(locktest.OpLock, "disk"), syscall.EIO, 1)
	w.write("migration-forgotten")
	w.after(lookInterval, "at the first look", 0, 1)
	w.after(lookInterval, "it fails again", 0, 1)
	w.told(locking.NotTakenAgain, 2)
	w.acquire(w.other())
	for range 10 {
		w.after(lookInterval, "another has it", 1, 1)
	}
	w.told(locking.NotTakenAgain, 3)
	if list := w.warnings(); len(list) != 1 {
		t.Errorf("warnings: %v", list)
	}
}

// TestReminderNames: what an owner is called comes from clients.
func TestReminderNames(t *testing.T) {
	w := newReminded(t)
	w.do(os.WriteFile(filepath.Join(w.dir, "..", "outside.xml"), nil, 0o600))
	w.do(os.Symlink("../outside.xml", filepath.Join(w.dir, "link.xml")))
	w.do(os.Mkdir(filepath.Join(w.dir, "directory.xml"), 0o700))
	for _, name := range []string{"", "..", "../outside", "link", "directory", "absent", "a\x00b"} {
		if s := w.Stamp(locking.Owner{Name: name}); s != (locking.Stamp{}) {
			t.Errorf("%q has a stamp: %v", name, s)
		}
	}
	w.write("booted")
	if s := w.Stamp(locking.Owner{Name: "cap"}); s == (locking.Stamp{}) {
		t.Error("a virtual machine has none")
	}
	if _, _, err := readStatus(filepath.Join(w.dir, "link.xml")); err == nil {
		t.Error("a link is followed")
	}
	big := filepath.Join(w.dir, "big.xml")
	w.do(os.WriteFile(big, nil, 0o600))
	w.do(os.Truncate(big, maxStatus+1))
	if _, _, err := readStatus(big); err == nil {
		t.Error("a file is read without bound")
	}
}

// forgetful is a whole daemon, and a virtual machine of which libvirt's notes are what a test writes.
type forgetful struct {
	*served
	disk  string
	owner locking.Owner
	c     *lockprogram.Client
}

func newForgetful(t *testing.T) *forgetful {
	t.Helper()
	s := build(t)
	f := &forgetful{served: s, disk: s.disk("web.img"), owner: locking.Owner{PID: int32(vm(t).Process.Pid), ID: 1, Name: "web", UUID: [16]byte{1}}}
	if err := os.Mkdir(filepath.Join(s.dir, "qemu"), 0o700); err != nil {
		t.Fatal(err)
	}
	f.write("running")
	s.start()
	f.dial()
	return f
}

func (f *forgetful) write(state string) {
	f.t.Helper()
	file := filepath.Join(f.dir, "qemu", "web.xml")
	text := fmt.Sprintf("<domstatus state='%s' pid='%d'><domain><name>web</name><uuid>%s</uuid><devices><disk type='file'><source file='%s'/></disk></devices></domain></domstatus>",
		state, f.owner.PID, locking.FormatUUID(f.owner.UUID), f.disk)
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		f.t.Fatal(err)
	}
}

// dial has libvirt speak for it, by a new connection.
func (f *forgetful) dial() {
	f.t.Helper()
	c, err := lockprogram.Dial(f.t.Context(), f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	f.c = c
	f.do(c.Register(f.t.Context(), f.owner))
}

func (f *forgetful) do(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *forgetful) acquire() error {
	return f.c.Acquire(f.t.Context(), locking.Ref{Name: f.disk}, 0)
}

func (f *forgetful) release() error {
	return f.c.Release(f.t.Context(), locking.Ref{Name: f.disk})
}

// TestForgottenLock: a whole daemon.
func TestForgottenLock(t *testing.T) {
	s := newForgetful(t)
	s.do(s.acquire())
	s.do(s.release())
	s.event("lock-released")
	s.write("paused")
	s.write("running")
	f := s.event("lock-taken-again")
	if f["VMLOCKD_NAME"] != s.disk || f["VMLOCKD_OWNER"] != "web" || f["PRIORITY"] != "4" {
		t.Errorf("taken again: %v", f)
	}
	if isFree(t, s.disk) {
		t.Error("the disk is free")
	}
	s.shows(`vmlockd_forgotten_locks_total{result="taken_again"}`, "1", `vmlockd_locks_held{mode="exclusive"}`, "1")
	if err := s.try(vm(t).Process.Pid, "mail", s.disk); err == nil {
		t.Error("another one got the disk")
	}
	// A stop and a start keep it.
	s.end(syscall.SIGKILL)
	s.start()
	if isFree(t, s.disk) {
		t.Error("the disk is free after a restart")
	}
}

// TestForgottenOverRestart: vmlockd is started again, or replaced in place, when a lock was given back and libvirt has not
// forgotten it yet; and once more when it was taken again and libvirt has not asked for it.
func TestForgottenOverRestart(t *testing.T) {
	for name, restart := range map[string]func(*forgetful, string){
		"killed": func(s *forgetful, state string) {
			s.end(syscall.SIGKILL)
			s.write(state)
			s.start()
			s.dial()
		},
		"in place": func(s *forgetful, state string) {
			s.signal(syscall.SIGUSR1)
			s.write(state)
			s.event("daemon-ready")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newForgetful(t)
			s.do(s.acquire())
			s.do(s.release())
			restart(s, "running")
			if f := s.event("lock-taken-again"); f["VMLOCKD_NAME"] != s.disk || f["VMLOCKD_OWNER"] != "web" {
				t.Errorf("taken again: %v", f)
			}
			restart(s, "paused")
			if isFree(t, s.disk) {
				t.Error("the disk is free after a restart")
			}
			s.do(s.acquire())
			if err := s.acquire(); err == nil {
				t.Error("granted twice")
			}
			restart(s, "running")
			if err := s.acquire(); err == nil {
				t.Error("granted twice, by another start")
			}
			s.do(s.release())
		})
	}
}
