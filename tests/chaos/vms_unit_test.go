package chaos_test

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// counter is a diary with a count.
func counter(n uint32) []byte {
	b := make([]byte, lab.CounterOffset+4)
	binary.LittleEndian.PutUint32(b[lab.CounterOffset:], n)
	return b
}

// TestLostIsFound: a count that goes back is one that another virtual machine has written over.
func TestLostIsFound(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	w := &world{t: t, shape: shapeOf("qemu"), guests: map[string][]*guest{}}
	d := w.shape.disks[0]
	add := func(who string, at time.Duration, first, last uint32) {
		t.Helper()
		g := &guest{who: who, diary: filepath.Join(dir, who), held: began.Add(at), first: first}
		if at < 0 {
			g.held = time.Time{} // has not written
		}
		if err := os.WriteFile(g.diary, counter(last), 0o600); err != nil {
			t.Fatal(err)
		}
		w.guests[d.name] = append(w.guests[d.name], g)
	}
	found := func() [][2]string {
		t.Helper()
		pairs, err := lost(w.written(d))
		if err != nil {
			t.Fatal(err)
		}
		return pairs
	}
	if pairs := found(); len(pairs) > 0 {
		t.Errorf("of nobody: %v", pairs)
	}
	add("n2-1", 2*time.Second, 12, 20)
	add("n1-1", time.Second, 1, 10)
	add("n3-1", -1, 0, 0)
	if pairs := found(); len(pairs) > 0 {
		t.Errorf("%v", pairs)
	}
	add("n3-2", 3*time.Second, 20, 30)
	if pairs := found(); len(pairs) != 1 || pairs[0][0] != "n2-1 had counted to 20" {
		t.Errorf("n2-1 has written 20, as n3-2 did: %v", pairs)
	}
}

// TestDiaryTells: who writes its diary when another one's first record was there already is found, and nobody else.
func TestDiaryTells(t *testing.T) {
	dir, began := t.TempDir(), time.Now()
	at := func(s time.Duration) time.Time { return began.Add(s * time.Second) }
	w := &world{t: t, shape: shapeOf("qemu"), guests: map[string][]*guest{}}
	d := w.shape.disks[0]
	add := func(who string, held, last time.Time) {
		t.Helper()
		g := &guest{who: who, diary: filepath.Join(dir, who), asks: held, held: held}
		if err := os.WriteFile(g.diary, counter(7), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(g.diary, last, last); err != nil {
			t.Fatal(err)
		}
		w.guests[d.name] = append(w.guests[d.name], g)
	}
	add("n2-1", at(10), at(20))
	add("n1-1", at(0), at(9))
	add("n3-1", time.Time{}, at(15)) // has not written
	holds, err := w.holds(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(holds) != 2 || holds[0].who != "n1-1" || holds[1].who != "n2-1" || len(overlaps(holds)) != 0 {
		t.Errorf("%+v, overlaps %+v", holds, overlaps(holds))
	}
	add("n3-2", at(19), at(30))
	if holds, err = w.holds(d); err != nil {
		t.Fatal(err)
	}
	if found := overlaps(holds); len(found) != 1 || found[0][0].who != "n2-1" || found[0][1].who != "n3-2" {
		t.Errorf("%+v", found)
	}
}

// TestHeldIsBeforeTheFirstRecord: a hold must not begin after what it has written first.
func TestHeldIsBeforeTheFirstRecord(t *testing.T) {
	g := &guest{who: "n1-1", diary: filepath.Join(t.TempDir(), "diary")}
	f, err := os.Create(g.diary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(lab.CounterOffset + 4); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	found := make(chan struct{})
	go func() {
		defer close(found)
		g.until(ctx, begun)
	}()
	if _, err := f.WriteAt(counter(7), 0); err != nil {
		t.Fatal(err)
	}
	written := time.Now()
	<-found
	if g.first != 7 || g.held.Before(begun) || g.held.After(written) {
		t.Errorf("it began with %d, held from %v on; looked at since %v, and written before %v", g.first, g.held, begun, written)
	}
}
