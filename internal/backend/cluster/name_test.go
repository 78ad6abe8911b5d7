package cluster_test

import (
	"testing"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestResourceName holds the names for ever: hosts with different versions of
// vmlockd would otherwise lock different things for one disk. The values are from
// sha256sum, as in printf '/leases\0db1' | sha256sum.
func TestResourceName(t *testing.T) {
	for ref, want := range map[locking.Ref]string{
		{Name: "/srv/vm/web.img"}:           "8534c53f3126779a0731a95f8a3135d93a00ac196f488c7331e3f8b7cc55bb3a",
		{Lockspace: "/leases", Name: "db1"}: "f1bb736f3a6e96558815769649784b7a89811768e6c21f83576cfbf3ff8e28d5",
		{Lockspace: "/a", Name: "x"}:        "abaf0a42bb0fa484521bccc61b17fe115a296e61712fe2dd1652394216fa5f3c",
		{Lockspace: "", Name: "x"}:          "3c7e9bc930dc93f01fa69985ef242d9f9e861f3c5355aa24ce5ef4b4b8a70ccb",
	} {
		if got := cluster.ResourceName(ref); got != want {
			t.Errorf("%+v is %s, want %s", ref, got, want)
		}
	}
	// Where one part ends and the other begins counts.
	names := map[string]locking.Ref{}
	for _, ref := range []locking.Ref{{Lockspace: "/a", Name: "x"}, {Name: "/ax"}, {Lockspace: "/ax"}, {Lockspace: "/", Name: "ax"}} {
		name := cluster.ResourceName(ref)
		if other, twice := names[name]; twice {
			t.Errorf("%+v and %+v are one resource", ref, other)
		}
		names[name] = ref
	}
}
