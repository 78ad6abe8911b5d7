package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/vmlockd/vmlockd/internal/domstatus"
)

// belowWritten looks for running virtual machines whose disk lies on an image that
// another one has for itself, on any host. libvirt asks for no lock of what is below a
// disk, so nobody refuses that.
func (x *exam) belowWritten(running []domain) {
	if x.silent != nil {
		return // which locked says
	}
	writers := map[string][]Holder{}
	for _, h := range x.daemon.Holders {
		if !h.Shared {
			writers[h.Resource] = append(writers[h.Resource], h)
		}
	}
	for _, d := range running {
		for _, k := range d.disks {
			for _, p := range k.below {
				// One that commits its own disk into the image has that too.
				for _, h := range slices.Concat(writers[p], writers[domstatus.Hashed(p)]) {
					if h.Here && h.PID == d.pid {
						continue
					}
					host := "this host"
					if !h.Here {
						if x.private(p) {
							continue // that is another file, of that host
						}
						host = "host " + h.Node
					}
					x.find(idBelow, fmt.Sprintf("%s, disk %s", d, k.target),
						fmt.Sprintf("end one of the two at once, and check the file system on %s; see docs/identity.md for how to keep others from writing %s", k.path, p),
						"%s lies on %s, and virtual machine %s on %s has that for itself: what it writes there damages the disk above", k.path, p, h.VM, host)
				}
			}
		}
	}
}

// private says that no other host can use what is at a path here.
func (x *exam) private(path string) bool {
	if x.Identify == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(x.ctx, identifyTimeout)
	defer cancel()
	id, err := x.Identify(ctx, path)
	return err == nil && id.Private
}
