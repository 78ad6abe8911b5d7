package doctor

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestParseCorosync(t *testing.T) {
	root, err := parseCorosync([]byte("# c\ntotem {\n  version: 2\n\tinterface {\n\t\tlinknumber: 0\n\t}\n}\n\ntotem {\n\tcluster_name: a:b\n}\nnodelist {\nnode {\nnodeid: 7\nname: x\n}\nnode {\nnodeid: y\n}\n}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s := root.lookup("totem", "cluster_name"); s != (setting{"a:b", 10}) {
		t.Errorf("%+v", s)
	}
	if s := root.lookup("totem", "version"); s.text != "2" {
		t.Errorf("%+v", s)
	}
	if n := root.nodes(); !slices.Equal(n, []coroNode{{7, "x", 13}, {0, "", 17}}) {
		t.Errorf("%+v", n)
	}
	for text, want := range map[string]string{
		"totem {\n":                 "not closed",
		"totem { version: 2 }\n":    "line 1",
		"}\n":                       "line 1: a closing brace too many",
		"{\n}\n":                    "without a name",
		"totem {\nnonsense\n}\n":    "line 2",
		strings.Repeat("a {\n", 99): "too many sections",
	} {
		if _, err := parseCorosync([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", clip(text, 40), err)
		}
	}
}

func TestParseVirConf(t *testing.T) {
	c, err := parseVirConf([]byte(`
# comment
a = "x # y" # comment
b=1
  c = 'it'
d = [ "a", # first
  'b',
]
e = """two
lines"""
f = -5
a = "again"`))
	want := virConf{"a": {"again", 12}, "b": {"1", 4}, "c": {"it", 5}, "d": {"", 6}, "e": {"two\nlines", 9}, "f": {"-5", 11}}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%v, %v", c, err)
	}
	for text, want := range map[string]string{
		"a":              "line 1",
		"\n= 1":          "line 2",
		"a = \"x\ny\"":   "closing quote",
		"a = [1":         "closing bracket",
		"a = [[1]]":      "list within",
		"a = 1 b = 2":    "behind the value",
		"a = yes":        "neither a number",
		"a =":            "no value",
		"lock manager=1": "key = value",
	} {
		if c, err := parseVirConf([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	}
}

func TestParseDLM(t *testing.T) {
	c := parseDLM([]byte("# x\nenable_fencing=0\nfence_all /sbin/a x=1\ndevice  d:1 b y=2\nconnect d:1 node=1 port=1\nlockspace x nodir=1\ndevice\n"))
	if c.values["enable_fencing"].text != "0" || len(c.values) != 1 || !slices.Equal(c.agents, []agent{{"/sbin/a", 3}, {"b", 4}}) {
		t.Errorf("%+v", c)
	}
}

func TestParseUnit(t *testing.T) {
	got := map[string][]setting{}
	parseUnit([]byte("[Unit]\nAfter=a \\\n  b\n; c\n[Service]\nA=1\nA=\nA=2\nB = x=y\nnonsense\n"), got)
	want := map[string][]setting{"Unit.After": {{"a  b", 3}}, "Service.A": {{"2", 8}}, "Service.B": {{"x=y", 9}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestParseDomain(t *testing.T) {
	tr := load(t, "testdata/local.txtar")
	d, err := parseStatus([]byte(tr.at(webXML).data))
	if err != nil {
		t.Fatal(err)
	}
	want := domain{name: "web", uuid: "7d1f0f7a-52d4-4b4c-9d0f-0d1c5b9e6a01", pid: 812, state: "running", running: true, disks: []disk{
		{target: "vda", path: web, format: "qcow2", cache: "none"},
		{target: "vdb", path: shared, format: "raw", cache: "none", shareable: true},
	}}
	if diff := cmp.Diff(want, d, cmp.AllowUnexported(domain{}, disk{})); diff != "" {
		t.Error(diff)
	}
	// As libvirt 9.0 writes them.
	want = domain{name: "web", uuid: "00112233-4455-6677-8899-aabbccddeeff", pid: 835, state: "running", running: true, disks: []disk{
		{target: "vda", path: web, format: "raw", cache: "writethrough"},
		{target: "vdb", path: shared, format: "raw", cache: "writethrough", shareable: true},
	}}
	for file, parse := range map[string]func([]byte) (domain, error){"testdata/domstatus.xml": parseStatus, "testdata/domain.xml": parseDefinition} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if file == "testdata/domain.xml" {
			want.pid, want.state, want.running = 0, "", false
		} else {
			want.pid, want.state, want.running = 835, "running", true
		}
		if diff := cmp.Diff(want, d, cmp.AllowUnexported(domain{}, disk{})); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
	for _, text := range []string{"", "<domain>", "<domain/>", "<domain><name> </name></domain>", "<x/>"} {
		if d, err := parseDefinition([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, d)
		}
	}
}

func TestVolumePath(t *testing.T) {
	tr := &tree{files: map[string]*node{}}
	tr.write("/etc/libvirt/storage/vg.xml", "<pool type='logical'><name>vg</name><target><path>/dev/vg</path></target></pool>")
	tr.write("/run/libvirt/storage/d.xml", "<poolstate><pool type='dir'><target><path>/srv</path></target></pool></poolstate>")
	tr.write("/etc/libvirt/storage/r.xml", "<pool type='rbd'><name>r</name></pool>")
	for volume, want := range map[string]string{
		"vg/a": "/dev/vg/a", "d/b.img": "/srv/b.img", "r/c": "", "no/x": "", "vg/": "", "vg/../../x": "", "../../etc/x/y": "",
	} {
		if p, ok := volumePath(tr, volume); p != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", volume, p, ok)
		}
	}
}

func TestUnstableName(t *testing.T) {
	for p, want := range map[string]bool{
		"/dev/sda": true, "/dev/sdab12": true, "/dev/nvme0n1": true, "/dev/nvme0n1p3": true, "/dev/dm-3": true, "/dev/vdb": true, "/dev/loop0p1": true,
		"/dev/disk/by-id/wwn-0x5": false, "/dev/vg0/sda": false, "/dev/mapper/x": false, "/srv/dev/sda": false, "/dev/sda/x": false, "/dev/drbd0": false,
	} {
		if unstableName.MatchString(p) != want {
			t.Error(p)
		}
	}
}

// The parsers take whatever somebody has written, and what they keep is no more
// than what they were given.

func FuzzParseCorosync(f *testing.F) {
	f.Add("totem {\n\tcluster_name: x\n}\n")
	f.Add("a {\nb {\n}\n}\n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var root *section
		var err error
		testenv.Bounded(t, 100, len(text), func() { root, err = parseCorosync([]byte(text)) })
		if err != nil {
			return
		}
		n := 0
		var walk func(*section, int)
		walk = func(s *section, depth int) {
			if depth > maxDepth+1 {
				t.Fatalf("%d sections deep", depth)
			}
			for k, v := range s.values {
				n += len(k) + len(v.text)
			}
			for _, c := range s.subs {
				n += len(c.name)
				walk(c, depth+1)
			}
		}
		walk(root, 0)
		if n > len(text) {
			t.Errorf("%d bytes from %d", n, len(text))
		}
		root.nodes()
	})
}

func FuzzParseVirConf(f *testing.F) {
	f.Add("a = \"x\"\nb = [ 1, 'c' ]\n")
	f.Add("a=\"\"\"\n\"\"\"")
	f.Fuzz(func(t *testing.T, text string) {
		var c virConf
		var err error
		testenv.Bounded(t, 100, len(text), func() { c, err = parseVirConf([]byte(text)) })
		if err != nil && c != nil {
			t.Error("settings and an error")
		}
		n := 0
		for k, v := range c {
			n += len(k) + len(v.text)
			if v.line < 1 || v.line > strings.Count(text, "\n")+1 {
				t.Errorf("%s is in line %d", k, v.line)
			}
		}
		if n > len(text) {
			t.Errorf("%d bytes from %d", n, len(text))
		}
	})
}

func FuzzParseUnitAndDLM(f *testing.F) {
	f.Add("[Service]\nKillMode=process\n")
	f.Add("fence_all x\ndevice a b\nx=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		u := map[string][]setting{}
		var c dlmConf
		testenv.Bounded(t, 100, len(text), func() {
			parseUnit([]byte(text), u)
			c = parseDLM([]byte(text))
		})
		n := 0
		for _, list := range u {
			for _, s := range list {
				n += len(s.text)
			}
		}
		// A continued line gets one blank for each break.
		if n > 2*len(text) {
			t.Errorf("%d bytes from %d", n, len(text))
		}
		if len(c.agents)+len(c.values) > strings.Count(text, "\n")+1 {
			t.Errorf("%+v", c)
		}
	})
}

func FuzzParseDomain(f *testing.F) {
	f.Add("<domstatus state='running' pid='1'><domain><name>a</name><devices><disk type='file'><source file='/x'/></disk></devices></domain></domstatus>")
	f.Add("<domain><name>a</name><devices><disk type='volume'><source pool='p' volume='v'/></disk></devices></domain>")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func([]byte) (domain, error){parseStatus, parseDefinition} {
			var d domain
			var err error
			testenv.Bounded(t, 1000, len(text), func() { d, err = parse([]byte(text)) })
			if err != nil {
				continue
			}
			if d.name == "" {
				t.Error("no name")
			}
			for _, k := range d.disks {
				if k.path == "" && k.volume == "" {
					t.Error("a disk that is nowhere")
				}
			}
		}
	})
}

func FuzzAgents(f *testing.F) {
	f.Add(pacemakersCIB)
	f.Add("<cib><template class='ocf' provider='heartbeat' type='VirtualDomain'/></cib>")
	f.Fuzz(func(t *testing.T, text string) {
		var list map[string]bool
		var err error
		testenv.Bounded(t, 1000, len(text), func() { list, err = agentsOf([]byte(text)) })
		if n := strings.Count(text, "primitive") + strings.Count(text, "template"); len(list) > n || err != nil && list != nil {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func FuzzProc(f *testing.F) {
	f.Add("Num\n0: 2 0 00010000 1 1 193 /run/x\n", "Max open files 1 2 files\n")
	f.Fuzz(func(t *testing.T, unix, limits string) {
		n := 0
		testenv.Bounded(t, 100, len(unix)+len(limits), func() {
			n = len(listening([]byte(unix), "/run/x"))
			_, _ = openFileLimit([]byte(limits))
		})
		if n > strings.Count(unix, "\n")+1 {
			t.Errorf("%d sockets", n)
		}
	})
}
