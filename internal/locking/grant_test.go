package locking_test

import (
	"context"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestExclusiveAndBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		w.acquire(one, disk("a"), locking.Exclusive)
		w.holders(disk("a"), 1)
		if mode, ok := w.b.Locked()["id-a"]; !ok || mode != locking.Exclusive {
			t.Fatalf("granted, and the backend has it locked: %v, %v", ok, mode)
		}
		w.refused(two.Release(context.Background(), disk("a")), locking.KindNotOwner)
		w.release(one, disk("a"))
		if len(w.b.Locked()) != 0 {
			t.Fatal("released, and the backend still has it locked")
		}
		w.acquire(two, disk("a"), locking.Exclusive)
		w.release(two, disk("a"))
		one.Close()
		two.Close()
		settle()
		w.toldIs(locking.Granted, locking.Released, locking.Granted, locking.Released)
		w.empty()
	})
}

func TestSharedTwiceNeedsTwoReleases(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		w.acquire(one, disk("a"), locking.Shared)
		w.acquire(two, disk("a"), locking.Shared)
		w.acquire(one, disk("a"), locking.Shared)
		w.holders(disk("a"), 1, 2, 1)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": locking.Shared})
		w.release(one, disk("a"))
		w.holders(disk("a"), 2, 1)
		w.release(one, disk("a"))
		w.refused(one.Release(context.Background(), disk("a")), locking.KindNotOwner)
		w.release(two, disk("a"))
		w.refused(two.Release(context.Background(), disk("a")), locking.KindNotLocked)
		w.acquire(one, disk("a"), locking.Exclusive)
		w.release(one, disk("a"))
		one.Close()
		two.Close()
		settle()
		w.empty()
	})
}

func TestAliasesAreOneResource(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Point(disk("alias"), "id-a")
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		w.acquire(one, disk("a"), locking.Exclusive)
		e := w.refused(two.Acquire(ctx, disk("alias"), locking.Exclusive, false), locking.KindBusy)
		if len(e.Holders) != 1 || e.Holders[0].Ref != disk("a") || e.Holders[0].Owner.PID != 1 {
			t.Errorf("the refusal names %+v", e.Holders)
		}
		w.release(one, disk("a"))
		w.acquire(one, disk("a"), locking.Shared)
		w.acquire(two, disk("alias"), locking.Shared)
		// Each name is released by who took it, and the lock goes with the last.
		w.refused(one.Release(ctx, disk("alias")), locking.KindNotOwner)
		w.release(one, disk("a"))
		w.refused(one.Release(ctx, disk("a")), locking.KindNotLocked)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": locking.Shared})
		w.release(two, disk("alias"))
		one.Close()
		two.Close()
		settle()
		w.empty()
	})
}

// A name that is held stays with its resource, whatever it leads to by now.
func TestHeldNameIsNotFollowed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		w.acquire(one, disk("a"), locking.Shared)
		w.b.Point(disk("a"), "replaced")
		w.refused(two.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindBusy)
		w.acquire(two, disk("a"), locking.Shared)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": locking.Shared})
		w.release(one, disk("a"))
		w.release(two, disk("a"))
		w.acquire(two, disk("a"), locking.Exclusive)
		w.b.CheckQuiet(map[string]locking.Mode{"replaced": locking.Exclusive})
	})
}

// The first one decides whether the resource goes with its last lock.
func TestAutocreateIsTheFirstOnesBusiness(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		if err := one.Acquire(ctx, disk("new"), locking.Shared, true); err != nil {
			t.Fatal(err)
		}
		w.acquire(two, disk("new"), locking.Shared)
		w.release(one, disk("new"))
		if w.b.Leads(disk("new")) == "" {
			t.Fatal("removed while it is held")
		}
		w.release(two, disk("new"))
		if w.b.Leads(disk("new")) != "" {
			t.Fatal("not removed with the last lock")
		}
		if err := w.m.CreateResource(ctx, disk("new")); err != nil {
			t.Fatal(err)
		}
		w.acquire(one, disk("new"), locking.Shared)
		if err := two.Acquire(ctx, disk("new"), locking.Shared, true); err != nil {
			t.Fatal(err)
		}
		w.release(one, disk("new"))
		w.release(two, disk("new"))
		if w.b.Leads(disk("new")) == "" {
			t.Fatal("removed, although the first one did not create it")
		}
		for range 2 {
			if err := w.m.DeleteResource(ctx, disk("new")); err != nil {
				t.Fatalf("delete: %v", err)
			}
		}
		if w.b.Leads(disk("new")) != "" {
			t.Fatal("not deleted")
		}
		one.Close()
		two.Close()
		settle()
		w.empty()
	})
}

// The owner is the pid alone.
func TestSamePIDIsTheSameOwner(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		qemu, _ := w.vm(1)
		libvirt, err := w.m.Register(locking.Owner{PID: 1, ID: 7, Name: "other words", UUID: [16]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		w.acquire(libvirt, disk("a"), locking.Exclusive)
		libvirt.Close()
		libvirt.Close() // again is harmless
		if h := w.m.Holders(); len(h) != 1 || h[0].Owner.Name != "other words" {
			t.Errorf("the holder is not who acquired: %+v", h)
		}
		w.release(qemu, disk("a"))
		w.acquire(qemu, disk("b"), locking.Exclusive)
		third := w.register(1)
		w.release(third, disk("b"))
		if n := w.ps.Watched(); n != 1 {
			t.Errorf("one process is watched %d times", n)
		}
		qemu.Close()
		third.Close()
		settle()
		w.empty()
	})
}

func TestHoldersIsNeverNil(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		if h := w.m.Holders(); h == nil || len(h) != 0 {
			t.Errorf("nobody holds anything: %#v", h)
		}
	})
}
