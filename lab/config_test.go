package lab

import (
	"encoding/xml"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string // part of the error
	}{
		{Config{Name: "a/b"}, "name"},
		{Config{Nodes: 6}, "6 nodes"},
		{Config{Nodes: MaxNodes, Witness: true}, "6 nodes"},
		{Config{Witness: true, Detach: true}, "witness"},
		{Config{Nodes: -1}, "-1 nodes"},
		{Config{MemoryMB: 64}, "64 MiB"},
		{Config{Token: time.Millisecond}, "token"},
		{Config{Fencing: "maybe"}, "fencing"},
		{Config{Transport: "sctp"}, "transport"},
		{Config{Fencing: ScriptFencing}, "FenceScript"},
		{Config{LockDaemon: "x"}, "lock daemon"},
		{Config{LockDaemon: VMLockd}, "needs the path"},
		{Config{VMLockd: "/does/not/exist"}, "program vmlockd"},
	} {
		if _, err := c.cfg.resolve(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want something about %q", c.cfg, err, c.want)
		}
	}
	got, err := Config{Libvirt: true}.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if got.Nodes != 3 || got.MemoryMB != 768 || got.Token != 5*time.Second || got.Fencing != NoFencing || got.Transport != UDPU || got.LockDaemon != NoLockDaemon {
		t.Errorf("defaults: %+v", got)
	}
}

// TestCorosyncConf: corosync reads a section only if its brace ends the line.
func TestCorosyncConf(t *testing.T) {
	conf := Config{Nodes: 2, Token: 3 * time.Second, Transport: KNET}.corosyncConf()
	open := 0
	for line := range strings.Lines(conf) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasSuffix(line, "{"):
			open++
		case line == "}":
			open--
		case strings.ContainsAny(line, "{}"):
			t.Errorf("brace inside a line: %q", line)
		}
	}
	if open != 0 || strings.Count(conf, "nodeid:") != 2 || !strings.Contains(conf, "token: 3000") || !strings.Contains(conf, "transport: knet") {
		t.Errorf("%s", conf)
	}
}

func TestWitness(t *testing.T) {
	c, err := Config{Nodes: 2, Witness: true}.resolve()
	if err != nil {
		t.Fatal(err)
	}
	nodes := c.wireConfig().Nodes
	if len(nodes) != 3 || len(nodes[2].Services) != 1 || nodes[2].Services[0].Name != ServiceQNetd {
		t.Fatalf("%+v", nodes)
	}
	if conf := c.corosyncConf(); strings.Count(conf, "nodeid:") != 2 || !strings.Contains(conf, "host: "+nodes[2].Interfaces[0].CIDR[:len("192.0.2.3")]+"\n") {
		t.Errorf("the witness is a member, or not the device:\n%s", conf)
	}
}

func TestRingOf(t *testing.T) {
	got := ringOf("Quorum:           2  \nFlags:            Quorate Qdevice \n\nMembership information\n----------------------\n" +
		"    Nodeid      Votes    Qdevice Name\n         2          1    A,V,NMW node2\n         1          1    A,V,NMW node1 (local)\n         0          1            Qdevice\n")
	if !reflect.DeepEqual(got, []int{1, 2}) {
		t.Errorf("%v", got)
	}
}

func TestParseDLMStatus(t *testing.T) {
	got, err := parseDLMStatus("cluster nodeid 1 quorate 1 ring seq 9 9\ndaemon now 10 fence_pid 0 \n" +
		"node 3 M add 9 rem 0 fail 0 fence 0 at 0 0\nnode 1 M add 6 rem 0 fail 0 fence 0 at 0 0\nnode 2 X add 9 rem 12 fail 12 fence 0 at 0 0\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Membership{Quorate: true, Members: []int{1, 3}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDomainXML(t *testing.T) {
	d := Domain{
		Name: "a<b", ACPI: true, OnReboot: "destroy",
		Disks: []Disk{
			{Path: "/srv/shared/x&y"}, {Path: Device, Access: Shareable, Cache: "none"},
			{Path: "/srv/shared/z", Access: ReadOnly}, {Path: "/srv/shared/u", Bus: "usb"},
		},
		Leases: []Lease{{Lockspace: "s", Key: "k", Path: "/srv/shared/lease", Offset: 512}},
	}
	text := d.XML()
	for dec := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := dec.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
	for _, want := range []string{
		"<name>a&lt;b</name>", "file='/srv/shared/x&amp;y'", "dev='vda'", "type='block'", "<shareable/>", "dev='vdc' bus='virtio'/><readonly/>",
		"dev='sda' bus='usb'", "<lease><lockspace>s</lockspace><key>k</key><target path='/srv/shared/lease' offset='512'/></lease>", "<acpi/>",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

func TestGuests(t *testing.T) {
	for name, img := range map[string][]byte{"idle": IdleGuest(), "off": PowerOffGuest(5), "reboot": RebootGuest(1 << 20), "counting": CountingGuest(), "diary": DiaryGuest()} {
		if len(img) != imageSize || img[510] != 0x55 || img[511] != 0xaa {
			t.Errorf("%s: no boot sector", name)
		}
	}
	img := CountingGuest()
	img[CounterOffset+1] = 1
	if got := Counter(img); got != 256 {
		t.Errorf("Counter = %d", got)
	}
	if got := Counter(nil); got != 0 {
		t.Errorf("Counter of nothing = %d", got)
	}
}

func TestWithLine(t *testing.T) {
	if got := withLine("/does/not/exist", "a:x:1"); got != "a:x:1\n" {
		t.Errorf("without a file: %q", got)
	}
	if got := withLine("/etc/passwd", "root:changed"); strings.Contains(got, "changed") {
		t.Error("root is there already")
	}
}

func TestSystemdStartsTheCluster(t *testing.T) {
	for _, controld := range []bool{true, false} {
		c, err := Config{Systemd: true, NoControld: !controld, LockDaemon: LaterLockDaemon, Libvirt: true}.resolve()
		if err != nil {
			t.Fatal(err)
		}
		n := c.node(1)
		if len(n.Services) != 1 || n.Services[0].Name != ServiceLibvirt || n.Services[0].After != nil {
			t.Errorf("the agent starts %+v, and is to start libvirtd alone, at once", n.Services)
		}
		files := map[string]string{}
		for _, f := range n.Files {
			files[f.Path] = string(f.Data)
		}
		target := files["/etc/systemd/system/default.target"]
		if !strings.Contains(target, " corosync.service") || strings.Contains(target, " dlm.service") != controld {
			t.Errorf("with dlm_controld: %v; systemd starts\n%s", controld, target)
		}
		if !strings.Contains(files["/etc/libvirt/qemu.conf"], `lock_manager = "lockd"`) {
			t.Error("libvirt asks no lock daemon")
		}
	}
}
