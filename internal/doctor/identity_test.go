package doctor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/config"
)

func TestIdentities(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*world)
		say    func(path string) (Identity, error)
		want   []string
		words  string
	}{
		{"known", nil, func(string) (Identity, error) { return Identity{Type: "nfs4"}, nil }, nil, ""},
		{"by a rule", nil, func(string) (Identity, error) { return Identity{Type: "9p", ByPath: true}, nil }, nil, ""},
		{"not there", nil, func(string) (Identity, error) { return Identity{ByPath: true, Doubt: true}, nil }, nil, ""},
		{"in doubt", nil, func(path string) (Identity, error) {
			if path == web {
				return Identity{Type: "virtiofs", ByPath: true, Doubt: true}, nil
			}
			return Identity{Type: "nfs4"}, nil
		}, []string{idByPath}, "virtiofs"},
		{"on a mount of another namespace", nil, func(path string) (Identity, error) {
			if path == web {
				return Identity{Type: "unknown", Name: web, ByPath: true, Doubt: true}, nil
			}
			return Identity{Type: "nfs4"}, nil
		}, []string{idByPath}, "a mount that vmlockd does not see"},
		{"may not be looked at", nil, func(path string) (Identity, error) {
			return Identity{Type: "nfs4", Name: path, ByPath: path == web, Doubt: path == web}, nil
		}, []string{idByPath}, web + " is on nfs4"},
		{"by what its client calls it", nil, func(path string) (Identity, error) {
			if path == web {
				return Identity{Type: "nbd", Name: "nbd:server:10809/web", Doubt: true}, nil
			}
			return Identity{Type: "nfs4"}, nil
		}, []string{idByPath}, "nbd:server:10809/web"},
		{"by a path in a share", nil, func(path string) (Identity, error) {
			if path == web {
				return Identity{Type: "cifs", Name: "cifs:vm:/web.img", ByPath: true, Doubt: true}, nil
			}
			return Identity{Type: "nfs4"}, nil
		}, []string{idByPath}, "cifs:vm:/web.img"},
		{"not to be told", nil, func(path string) (Identity, error) {
			if path == web {
				return Identity{Error: "its server does not answer"}, nil
			}
			return Identity{Type: "nfs4"}, nil
		}, []string{idNoIdentity}, "its server does not answer"},
		{"no answer", nil, func(string) (Identity, error) { return Identity{}, errors.New("no answer") }, []string{idUnchecked}, "no answer"},
		{"an unstable name of a disk that is known", unstable, func(string) (Identity, error) { return Identity{Type: "scsi"}, nil }, nil, ""},
		{"and of one that is not", unstable, func(string) (Identity, error) { return Identity{ByPath: true, Doubt: true}, nil }, []string{idUnstable}, "/dev/sdb1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := clusterWorld(t)
			if tc.change != nil {
				tc.change(w)
			}
			asked := map[string]int{}
			found := Examine(t.Context(), Options{
				System: w.tree, Controld: w, Daemon: w.ask, Config: config.DefaultPath(),
				Identify: func(_ context.Context, path string) (Identity, error) {
					asked[path]++
					return tc.say(path)
				},
			}).Findings
			var ids []string
			words := tc.words == ""
			for _, f := range found {
				ids = append(ids, f.ID)
				words = words || strings.Contains(f.What, tc.words) && f.Remedy != ""
			}
			if !slices.Equal(ids, tc.want) || !words {
				t.Errorf("found %+v, want %v with %q", found, tc.want, tc.words)
			}
			for path, n := range asked {
				if n != 1 {
					t.Errorf("%s was asked for %d times", path, n)
				}
			}
			if len(asked) == 0 {
				t.Error("nothing was asked")
			}
		})
	}
}

func unstable(w *world) {
	w.replace(dbXML, wwnDisk, "/dev/sdb1")
	w.daemon.Holders[2].Resource = "/dev/sdb1"
}

func TestRemediesForOtherNames(t *testing.T) {
	for _, tc := range []struct{ path, typ, want, not string }{
		{"/dev/nbd0", "nbd", `type = "nbd", scope = "cluster"`, "serverino"},
		{"/mnt/share/web.img", "cifs", "serverino on all hosts", "type ="},
		{"/mnt/share/web.img", "smb3", `path = "/mnt/share/**", scope = "cluster"`, "type ="},
	} {
		got := otherNameRemedy(tc.path, tc.typ)
		if !strings.Contains(got, tc.want) || strings.Contains(got, tc.not) || !strings.Contains(got, "vmlockctl identify --cluster "+tc.path) {
			t.Errorf("%s: %s", tc.path, got)
		}
	}
}
