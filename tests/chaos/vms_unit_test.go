package chaos_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestDiaryTells: who writes its diary when another one's first record was there already is found, and nobody else.
func TestDiaryTells(t *testing.T) {
	dir, began := t.TempDir(), time.Now()
	at := func(s time.Duration) time.Time { return began.Add(s * time.Second) }
	w := &world{t: t, shape: shapeOf("qemu"), guests: map[string][]*guest{}}
	d := w.shape.disks[0]
	add := func(who string, held, last time.Time) {
		t.Helper()
		g := &guest{who: who, diary: filepath.Join(dir, who), asks: held, held: held}
		if err := os.WriteFile(g.diary, nil, 0o600); err != nil {
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
	if err := os.WriteFile(g.diary, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := time.Now().Add(-time.Hour)
	if err := os.Chtimes(g.diary, made, made); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(g.diary)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	found := make(chan struct{})
	go func() {
		defer close(found)
		g.until(ctx, info.ModTime())
	}()
	if err := os.WriteFile(g.diary, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	written := time.Now()
	<-found
	if g.held.IsZero() || g.held.After(written) || g.held.Before(begun) && !g.held.Equal(info.ModTime()) {
		t.Errorf("held from %v on; looked at since %v, and written before %v", g.held, begun, written)
	}
}
