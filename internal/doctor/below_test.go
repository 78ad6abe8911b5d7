package doctor

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/domstatus"
)

// below puts two images below the disk of web, as libvirt 9.0 tells it.
func below(w *world, p, bottom string) {
	const empty = "<source file='" + web + "' index='1'/>\n        <backingStore/>"
	w.replace(webXML, empty, strings.Replace(empty, "<backingStore/>", `<backingStore type='file' index='2'>
          <format type='qcow2'/>
          <source file='`+p+`'/>
          <backingStore type='block' index='3'>
            <format type='raw'/>
            <source dev='`+bottom+`'/>
            <backingStore/>
          </backingStore>
        </backingStore>`, 1))
}

// Each image below a disk counts, and whoever has it, unless that is the virtual machine
// itself, or has it only to read or to share, or is on another host where it is another file.
func TestBelowWritten(t *testing.T) {
	const middle, bottom = "/srv/vm/middle.qcow2", "/dev/vg0/bottom"
	for _, tc := range []struct {
		name    string
		holder  Holder
		private bool
		words   string
	}{
		{name: "nobody", holder: Holder{Node: "host2", VM: "mail", PID: 5, Resource: "/srv/vm/other.img"}},
		{name: "another host", holder: Holder{Node: "host2", VM: "mail", PID: 5, Resource: middle}, words: "lies on " + middle + ", and virtual machine mail on host host2"},
		{name: "the same number on another host", holder: Holder{Node: "host2", VM: "mail", PID: 812, Resource: bottom}, words: "lies on " + bottom + ", and virtual machine mail on host host2"},
		{name: "this host", holder: Holder{Here: true, Node: "host1", VM: "mail", PID: 5, Resource: bottom}, words: "virtual machine mail on this host"},
		{name: "this host, where it is private", private: true, holder: Holder{Here: true, Node: "host1", VM: "mail", PID: 5, Resource: bottom}, words: "virtual machine mail on this host"},
		{name: "by a hash", holder: Holder{Here: true, Node: "host1", VM: "mail", PID: 5, Lockspace: "/x", Resource: domstatus.Hashed(middle)}, words: "lies on " + middle},
		{name: "another file", private: true, holder: Holder{Node: "host2", VM: "mail", PID: 5, Resource: middle}},
		{name: "shared", holder: Holder{Node: "host2", VM: "keeper", PID: 5, Resource: middle, Shared: true}},
		{name: "its own commit", holder: Holder{Here: true, Node: "host1", VM: "web", PID: 812, Resource: middle}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := clusterWorld(t)
			below(w, middle, bottom)
			w.daemon.Holders = append(w.daemon.Holders, tc.holder)
			w.disks = map[string]Identity{middle: {Type: "ext4", Private: tc.private}, bottom: {Type: "lvm", Private: tc.private}}
			found := w.examine(t)
			switch {
			case tc.words == "" && len(found) > 0:
				t.Errorf("found %+v", found)
			case tc.words != "" && (len(found) != 1 || found[0].ID != idBelow || found[0].Where != "virtual machine web, disk vda" ||
				!strings.Contains(found[0].What, tc.words) || !strings.Contains(found[0].Remedy, "docs/identity.md")):
				t.Errorf("found %+v, want %q", found, tc.words)
			}
		})
	}
}

// Where libvirt makes the names, what vmlockd would make of a disk does not matter, nor
// its rules; the path does.
func TestNamesOfLibvirt(t *testing.T) {
	const files, scsi = "file_lockspace_dir = \"/a\"\n", "scsi_lockspace_dir = \"/b\"\n"
	for _, tc := range []struct {
		conf string
		want []string
	}{
		{"", []string{idNoIdentity, idByPath}},
		{files, []string{idUnstable}},
		{files + scsi, nil},
		{scsi, []string{idNoIdentity, idByPath}},
	} {
		w := clusterWorld(t)
		w.write(lockd, "auto_disk_leases = 1\n"+tc.conf)
		unstable(w)
		w.disks = map[string]Identity{
			"/dev/sdb1": {Type: "scsi"},
			web:         {Error: "its server does not answer"},
			shared:      {Type: "virtiofs", ByPath: true, Doubt: true},
		}
		for i := range w.daemon.Holders {
			if h := &w.daemon.Holders[i]; h.VM == "mail" && strings.Contains(tc.conf, files) { // as on this host
				h.Lockspace, h.Resource = "/a", domstatus.Hashed(h.Resource)
			}
		}
		var ids []string
		for _, f := range w.examine(t) {
			ids = append(ids, f.ID)
		}
		if !slices.Equal(ids, tc.want) {
			t.Errorf("with %q: %v, want %v", tc.conf, ids, tc.want)
		}
	}
}
