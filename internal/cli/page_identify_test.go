package cli

import (
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/control"
)

func TestIdentifiedTable(t *testing.T) {
	d := control.Identified{Asked: "/dev/x", Disks: []control.Disk{
		{NodeID: 1, Node: "kvm1", Path: "/dev/sdb", Type: "scsi", Scope: "cluster", Name: "scsi:naa.1", Resource: "abc", Steps: []string{"one", "two\x1b[0m"}},
		{NodeID: 2, Node: "kvm2", Path: "/dev/sdb", Type: "scsi", Scope: "cluster", Name: "scsi:naa.2", Differs: true},
		{NodeID: 3, Node: "kvm3", Error: "it hangs", Path: "/dev/sdb", Differs: true},
	}}
	var p page
	p.identified(d, true)
	want := `path     /dev/sdb
type     scsi
scope    cluster: other hosts may use it
name     scsi:naa.1
lock     abc
why      one
         two\x1b[0m

NODE  HOST  SCOPE    TYPE  NOTE       PATH      NAME
1     kvm1  cluster  scsi  this host  /dev/sdb  scsi:naa.1
2     kvm2  cluster  scsi  DIFFERS    /dev/sdb  scsi:naa.2
3     kvm3  unknown        DIFFERS    /dev/sdb  it hangs
`
	if got := p.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	p = page{}
	p.identified(control.Identified{Disks: []control.Disk{{Path: "/a", Error: "its server is gone"}}}, false)
	if got := p.String(); !strings.Contains(got, "no lock is granted: its server is gone") {
		t.Error(got)
	}
	p = page{}
	p.identified(control.Identified{Disks: []control.Disk{{Path: "/a", Scope: "host", Name: "file 8:1 2"}}}, false)
	if got := p.String(); !strings.Contains(got, "host: no other host can use it") {
		t.Error(got)
	}
	for name, want := range map[string]string{"/a": "under another path it", "nbd:server:10809/a": "under another name it"} {
		p = page{}
		p.identified(control.Identified{Disks: []control.Disk{{Path: "/a", Scope: "cluster", Name: name, Doubt: true}}}, false)
		if got := p.String(); !strings.Contains(got, want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}
