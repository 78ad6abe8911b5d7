package table

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

type thing struct {
	name string
	no   int
}

// A table does what a map does, is never too full to end a search, and gets smaller
// again.
func TestTableIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := New(func(v *thing) string { return v.name })
		want := map[string]*thing{}
		no := 0
		name := rapid.Map(rapid.IntRange(0, 40), func(n int) string { return fmt.Sprint(n) })
		check := func() {
			if tab.Len() != len(want) {
				t.Fatalf("%d things, want %d", tab.Len(), len(want))
			}
			seen := 0
			for v := range tab.All() {
				if want[v.name] != v {
					t.Fatalf("%v is in it, want %v", v, want[v.name])
				}
				seen++
			}
			if seen != len(want) {
				t.Fatalf("lists %d things of %d", seen, len(want))
			}
			if n := len(tab.slots); n > leastSlots && 4*tab.Len() > 3*n || tab.Len() > 0 && n&(n-1) != 0 {
				t.Fatalf("%d things in %d slots", tab.Len(), n)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				no++
				v := &thing{name.Draw(t, "name"), no}
				tab.Put(v)
				want[v.name] = v
			},
			"remove": func(t *rapid.T) {
				n := name.Draw(t, "name")
				tab.Remove(n)
				delete(want, n)
			},
			"get": func(t *rapid.T) {
				n := name.Draw(t, "name")
				if got := tab.Get(n); got != want[n] {
					t.Fatalf("%s: %v, want %v", n, got, want[n])
				}
			},
			"expect": func(t *rapid.T) {
				if tab.Len() == 0 {
					n := rapid.IntRange(0, 20).Draw(t, "n")
					tab.Expect(n)
					if 3*len(tab.slots) < 4*n {
						t.Fatalf("%d slots for %d things", len(tab.slots), n)
					}
				}
			},
			"": func(*rapid.T) { check() },
		})
	})
}

// Filled and emptied it keeps next to nothing.
func TestTableGetsSmaller(t *testing.T) {
	tab := New(func(v *thing) int { return v.no })
	const n = 10000
	for i := range n {
		tab.Put(&thing{no: i})
	}
	for i := range n {
		if v := tab.Get(i); v == nil || v.no != i {
			t.Fatalf("%d leads to %v", i, v)
		}
		tab.Remove(i)
		if tab.Get(i) != nil {
			t.Fatalf("%d is still there", i)
		}
	}
	if len(tab.slots) > leastSlots || tab.Len() != 0 {
		t.Errorf("%d slots for %d things", len(tab.slots), tab.Len())
	}
}
