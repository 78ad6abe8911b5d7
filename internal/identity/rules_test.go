package identity

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestRuleMistakes(t *testing.T) {
	for _, tc := range []struct {
		rule      RuleText
		key, want string
	}{
		{RuleText{Scope: "host"}, "path", "every disk"},
		{RuleText{Path: "srv/**", Scope: "host"}, "path", "begin it with /"},
		{RuleText{Path: "/srv/***", Scope: "host"}, "path", "three *"},
		{RuleText{Path: "/srv//x", Scope: "host"}, "path", `write "/srv/x"`},
		{RuleText{Path: "/srv/", Scope: "host"}, "path", `write "/srv"`},
		{RuleText{Path: "/srv/../x", Scope: "host"}, "path", `write "/x"`},
		{RuleText{Path: "/srv/[ab]", Scope: "host"}, "path", "stand for nothing"},
		{RuleText{Path: "/" + strings.Repeat("x", 4096), Scope: "host"}, "path", "4097 bytes"},
		{RuleText{Path: "/srv/\xdd/**", Scope: "cluster"}, "path", "is not UTF-8"},
		{RuleText{Path: "/a/*", Scope: "cluster", Name: "\xdd{rest}"}, "name", "is not UTF-8"},
		{RuleText{Path: "/dev/disk/by-id/*", Scope: "host"}, "path", "/dev/mapper/NAME"},
		{RuleText{Path: "/dev/dm-*", Scope: "host"}, "path", "/dev/mapper/NAME"},
		{RuleText{Path: "/dev/dm-0", Scope: "host"}, "path", "/dev/mapper/NAME"},
		{RuleText{Path: "/dev/sd*", Type: "scsy", Scope: "host"}, "type", `"scsy" is no kind of device`},
		{RuleText{Path: "/srv/**", Type: "lvm", Scope: "host"}, "path", "begins with /dev/"},
		{RuleText{Path: "/device/*", Type: "lvm", Scope: "host"}, "path", "begins with /dev/"},
		{RuleText{Path: "/a/**", Scope: "cluster", Name: "vm/{base}"}, "name", "use {rest}"},
		{RuleText{Path: "/a/*/x*", Scope: "cluster", Name: "vm/{base}"}, "name", "use {rest}"},
		{RuleText{Path: "/a?/x", Scope: "cluster", Name: "vm/{base}"}, "name", "use {rest}"},
		{RuleText{Type: "LVM!", Scope: "host"}, "type", "lvm"},
		{RuleText{Type: "lvm"}, "scope", "it is missing"},
		{RuleText{Type: "lvm", Scope: "node"}, "scope", `"cluster" or "host"`},
		{RuleText{Type: "lvm", Scope: "host", Name: "{path}"}, "name", "remove the name"},
		{RuleText{Type: "lvm", Scope: "cluster", Name: "{pth}"}, "name", "{pth} stands for nothing"},
		{RuleText{Type: "lvm", Scope: "cluster", Name: "x"}, "name", "only one of them could be used"},
		{RuleText{Path: "/a/*", Scope: "cluster", Name: "x"}, "name", "only one of them could be used"},
		{RuleText{Path: "/a/b", Scope: "cluster", Name: "{rest}"}, "name", "there are none"},
		{RuleText{Path: "/a/*", Scope: "cluster", Name: "{rest}}"}, "name", "belongs to no variable"},
		{RuleText{Path: "/a/*", Scope: "cluster", Name: "{rest}" + strings.Repeat("x", 1024)}, "name", "use up to 1024"},
	} {
		_, err := NewRule(tc.rule)
		var e *RuleError
		if !errors.As(err, &e) || e.Key != tc.key || !strings.Contains(e.What, tc.want) {
			t.Errorf("%+v: %v, want %s: ...%s", tc.rule, err, tc.key, tc.want)
		}
	}
}

func TestRulesThatMayMatch(t *testing.T) {
	for _, text := range []RuleText{
		{Path: "/dev/mapper/*", Type: "lvm", Scope: "host"},
		{Path: "/dev/**", Type: "scsi", Scope: "host"},
		{Path: "/d*/sda", Type: "scsi", Scope: "host"},
		{Path: "/**", Type: "scsi", Scope: "host"},
		{Path: "/dev/shm/**", Type: "tmpfs", Scope: "cluster"},
		{Path: "/dev/shm/x/**", Type: "sitefs", Scope: "cluster"},
		{Path: "/dev/x", Type: "character", Scope: "host"},
		{Path: "/srv/**", Type: "unknown", Scope: "host"},
		{Path: "/dev/disk", Scope: "host"},
		{Path: "/a/*", Scope: "cluster", Name: "vm/{base}"},
		{Path: "/a/b?.img", Scope: "cluster", Name: "vm/{base}"},
		{Path: "/a/**", Scope: "cluster", Name: "{base}/{inode}"},
		{Type: "lvm", Scope: "cluster", Name: "vm/{base}"},
	} {
		if _, err := NewRule(text); err != nil {
			t.Errorf("%+v: %v", text, err)
		}
	}
}

func TestGlobs(t *testing.T) {
	for _, tc := range []struct {
		glob, path, rest string
		match            bool
	}{
		{"/srv/**", "/srv/a/b", "a/b", true},
		{"/srv/**", "/srv", "", false},
		{"/srv/*", "/srv/a", "a", true},
		{"/srv/*", "/srv/a/b", "", false},
		{"/srv/*/b?", "/srv/a/bc", "a/bc", true},
		{"/srv/*/b?", "/srv/a/b/", "", false},
		{"/srv/a.b", "/srv/aXb", "", false},
		{"/srv/a.b", "/srv/a.b", "", true},
		{"/srv/a.b", "/srv/a.bc", "", false},
		{"/**/x", "/a\nb/c/x", "a\nb/c/x", true},
	} {
		r, err := NewRule(RuleText{Path: tc.glob, Scope: "cluster"})
		if err != nil {
			t.Fatal(err)
		}
		rest, ok := r.match(&Identity{Path: tc.path})
		if ok != tc.match || rest != tc.rest {
			t.Errorf("%s and %s: %q, %v", tc.glob, tc.path, rest, ok)
		}
	}
}

func TestShadows(t *testing.T) {
	rule := func(path, typ string) Rule {
		r, err := NewRule(RuleText{Path: path, Type: typ, Scope: "cluster"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, tc := range []struct {
		first, later Rule
		want         bool
	}{
		{rule("/a/**", ""), rule("/a/b/*", "ext4"), true},
		{rule("/a/**", ""), rule("/ab/*", ""), false},
		{rule("/a/**", "ext4"), rule("/a/b", ""), false},
		{rule("", "lvm"), rule("/dev/**", "lvm"), true},
		{rule("", "lvm"), rule("/dev/**", ""), false},
		{rule("/**", ""), rule("", "lvm"), true},
		{rule("/a/*", ""), rule("/a/*", ""), true},
		{rule("/a/*", ""), rule("", "lvm"), false},
	} {
		if got := tc.first.Shadows(tc.later); got != tc.want {
			t.Errorf("%+v before %+v: %v", tc.first.Text(), tc.later.Text(), got)
		}
	}
}

func TestDigest(t *testing.T) {
	// It changes with the scheme, and with nothing else: hosts of other versions have it.
	// From sha256sum.
	if got := Digest(nil); scheme != "identity 5" || got != "14075fac7597bd27" {
		t.Errorf("the digest of no rules is %s with the scheme %q: a disk that gets another name needs another scheme, and that one another digest here", got, scheme)
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func() (list []Rule) {
			for _, p := range rapid.SliceOfN(rapid.SampledFrom([]string{"/a", "/b", "/c/**"}), 0, 3).Draw(t, "rules") {
				r, err := NewRule(RuleText{Path: p, Scope: "cluster"})
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, r)
			}
			return list
		}
		a, b := draw(), draw()
		same := len(a) == len(b)
		for i := range a {
			same = same && a[i].Text() == b[i].Text()
		}
		if (Digest(a) == Digest(b)) != same {
			t.Fatalf("%v and %v have the digests %s and %s", a, b, Digest(a), Digest(b))
		}
	})
}

func FuzzNewRule(f *testing.F) {
	f.Add("/srv/**", "", "cluster", "{rest}", "/srv/a")
	f.Add("", "lvm", "host", "", "/dev/x")
	f.Add("/sr\xddv/**", "", "cluster", "{rest}", "/sr\xddv/a")
	f.Fuzz(func(t *testing.T, path, typ, scope, name, other string) {
		var r Rule
		var err error
		testenv.Bounded(t, 100, len(path)+len(typ)+len(scope)+len(name), func() { r, err = NewRule(RuleText{path, typ, scope, name}) })
		if err != nil {
			var e *RuleError
			if !errors.As(err, &e) || e.What == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		if rest, ok := r.match(&Identity{Path: other, Type: typ}); ok && !strings.HasSuffix(other, rest) {
			t.Fatalf("%q of %q", rest, other)
		}
	})
}
