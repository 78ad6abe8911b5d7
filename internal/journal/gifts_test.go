package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// kept is like what libvirt's virtual machines give back, n of them different.
func kept(n int) locking.Kept {
	e := entry(n)
	return locking.Kept{Owner: e.Owner, OwnerStart: e.OwnerStart, Ref: e.Ref, Mode: locking.Mode(n % 2), Autocreate: n%2 == 0, Stamp: locking.Stamp{Inode: uint64(n) << 40, Written: -int64(n)}}
}

// gifts opens them, and wants these to be found, by the numbers they were made of.
func gifts(t *testing.T, dir string, want ...int) *Gifts {
	t.Helper()
	g, list, err := OpenGifts(dir, boot)
	must(t, err)
	t.Cleanup(func() { _ = g.Close() })
	found(t, list, want...)
	return g
}

func found(t *testing.T, list []locking.Kept, want ...int) {
	t.Helper()
	var all []locking.Kept
	for i, n := range want {
		k := kept(n)
		if i < len(list) {
			k.Seq = list[i].Seq
		}
		all = append(all, k)
	}
	if !slices.Equal(list, all) {
		t.Fatalf("kept is %+v, want %+v", list, all)
	}
}

func add(t *testing.T, g *Gifts, n int) uint64 {
	t.Helper()
	seq, err := g.Add(kept(n))
	must(t, err)
	if seq == 0 {
		t.Error("it has no number")
	}
	return seq
}

func TestGifts(t *testing.T) {
	dir := memoryDir(t)
	g := gifts(t, dir)
	if _, err := os.Stat(g.dir); !os.IsNotExist(err) {
		t.Errorf("something is there, and nothing was kept: %v", err)
	}
	must(t, g.Close())
	g = gifts(t, dir)
	add(t, g, 1)
	second := add(t, g, 2)
	add(t, g, 3)
	must(t, g.Forget(second))
	must(t, g.Close())
	if _, err := g.Add(kept(4)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := errors.Join(g.Forget(second), g.Close()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	g = gifts(t, dir, 1, 3)
	add(t, g, 4)
	must(t, g.Close())
	gifts(t, dir, 1, 3, 4)

	// A program that knows nothing of it reads the journal beside it as ever.
	if j, r := mustOpen(t, dir); r.Damage != nil || len(r.Entries) != 0 {
		t.Errorf("the journal: %+v", r)
	} else if n, err := Live(dir, boot); n != 0 || err != nil || Check(dir, boot) != nil || j.Stats().Entries != 0 {
		t.Errorf("the journal has %d entries, %v", n, err)
	}
}

// TestGiftsDamaged: what cannot be read is forgotten, all of it, and the next start begins anew.
func TestGiftsDamaged(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"a record": func(b []byte) []byte {
			b[len(b)/2] ^= 1
			return b
		},
		"cut off":    func([]byte) []byte { return nil },
		"no journal": func(b []byte) []byte { return []byte(strings.Repeat("x", len(b))) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := memoryDir(t)
			g := gifts(t, dir)
			for n := range 5 {
				add(t, g, n)
			}
			must(t, g.Close())
			file := journalFile(g.dir)
			must(t, os.WriteFile(file, damage(readFile(t, file)), 0o600))
			g, list, err := OpenGifts(dir, boot)
			if err == nil || len(list) != 0 {
				t.Fatalf("%v, and %+v is kept", err, list)
			}
			add(t, g, 7) // it works all the same
			must(t, g.Close())
			gifts(t, dir, 7)
		})
	}
	// The last record was cut short: nobody was told that it is there, and the others are.
	dir := memoryDir(t)
	g := gifts(t, dir)
	add(t, g, 1)
	add(t, g, 2)
	must(t, g.Close())
	file := journalFile(g.dir)
	b := readFile(t, file)
	must(t, os.WriteFile(file, b[:len(b)-1], 0o600))
	gifts(t, dir, 1)
}

// TestGiftsOfOthers: entries that are not of what was given back are not taken for it.
func TestGiftsOfOthers(t *testing.T) {
	dir := memoryDir(t)
	must(t, os.Mkdir(filepath.Join(dir, giftsDir), 0o700))
	j, _ := mustOpen(t, filepath.Join(dir, giftsDir))
	must(t, j.Settled())
	good := entry(1)
	good.Note, good.State = "inode 1 written 2", locking.EntryGranted
	for _, change := range []func(*locking.Entry){
		func(e *locking.Entry) { e.Note = "" },
		func(e *locking.Entry) { e.Note = "inode 1 written 2 by hand" },
		func(e *locking.Entry) { e.Note = "inode 01 written 2" },
		func(e *locking.Entry) { e.Note = "inode -1 written 2" },
		func(e *locking.Entry) { e.State = locking.EntryReleasing },
		func(e *locking.Entry) { e.OwnerStart = 0 },
	} {
		e := good
		change(&e)
		mustIntend(t, j, e)
	}
	seq := mustIntend(t, j, good)
	must(t, j.Close())
	g, list, err := OpenGifts(dir, boot)
	if err == nil || len(list) != 1 || list[0].Seq != seq || list[0].Stamp != (locking.Stamp{Inode: 1, Written: 2}) {
		t.Errorf("%v, and %+v is kept", err, list)
	}
	must(t, g.Close())
	if g, list, err = OpenGifts(dir, boot); err != nil || len(list) != 1 {
		t.Errorf("the next time: %v, %+v", err, list)
	}
	must(t, g.Close())
}

// TestGiftsUnread: what could not be read at the start and can be later is not found by the start after that: nobody has
// looked after it meanwhile.
func TestGiftsUnread(t *testing.T) {
	dir := memoryDir(t)
	g := gifts(t, dir)
	add(t, g, 1)
	if _, list, err := OpenGifts(dir, boot); !errors.Is(err, ErrInUse) || len(list) != 0 {
		t.Fatalf("%v, and %+v is kept", err, list)
	}
	other, _, _ := OpenGifts(dir, boot)
	if _, err := other.Add(kept(2)); !errors.Is(err, ErrInUse) {
		t.Errorf("two have it: %v", err)
	}
	must(t, g.Close())
	add(t, other, 2)
	must(t, other.Close())
	gifts(t, dir, 2)
}

// TestGiftsOfAnotherBoot: whoever gave them back has ended with it.
func TestGiftsOfAnotherBoot(t *testing.T) {
	dir := memoryDir(t)
	g := gifts(t, dir)
	add(t, g, 1)
	must(t, g.Close())
	g, list, err := OpenGifts(dir, "another")
	must(t, err)
	found(t, list)
	must(t, g.Close())
}

// TestGiftsFull: what cannot be written is not there, nor half of it, and it works again once there is room; also if there was none for the first.
func TestGiftsFull(t *testing.T) {
	for _, part := range []int{0, 1, 20, 150} {
		for name, had := range map[string][]int{"the first": nil, "another": {1, 2}} {
			t.Run(fmt.Sprintf("%s, %d bytes of it", name, part), func(t *testing.T) {
				dir := memoryDir(t)
				g := gifts(t, dir)
				for _, n := range had {
					add(t, g, n)
				}
				restore := failWrites(t, part, unix.ENOSPC)
				for range 2 {
					if seq, err := g.Add(kept(3)); !errors.Is(err, unix.ENOSPC) || seq != 0 {
						t.Errorf("%d, %v, want ENOSPC", seq, err)
					}
				}
				restore()
				add(t, g, 4)
				must(t, g.Close())
				gifts(t, dir, append(slices.Clone(had), 4)...)
			})
		}
	}
}
