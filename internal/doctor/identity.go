package doctor

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Identity is which disk vmlockd takes a path for.
type Identity struct {
	Type    string // kind of device, or file system; "" if nothing was found there
	Name    string // what is locked; it begins with / if it is a path
	Private bool   // no other host can use it
	ByPath  bool   // its name is made of the path
	Doubt   bool   // another host may name it otherwise, and no rule says what is meant
	Error   string // why it is not known
}

const (
	// maxIdentified bounds how many paths vmlockd is asked about.
	maxIdentified = 256
	// identifyTimeout bounds the time for all of them: a server that does not answer
	// costs a second for each.
	identifyTimeout = 5 * time.Second
)

// identities asks vmlockd about the disks, and looks for those that it can name by
// nothing but their path or what this host calls them, and for those that it cannot
// tell.
func (x *exam) identities(running, defined []domain) {
	if x.Identify == nil || x.silent != nil || x.libvirt.fileDir != "" {
		return // in file_lockspace_dir libvirt makes the names, whatever a disk is
	}
	ctx, cancel := context.WithTimeout(x.ctx, identifyTimeout)
	defer cancel()
	for _, d := range slices.Concat(running, defined) {
		for _, k := range d.disks {
			if _, known := x.disks[k.path]; known || !path.IsAbs(k.path) {
				continue
			}
			if len(x.disks) == maxIdentified {
				x.unchecked(definedDir, fmt.Errorf("there are more than %d disks", maxIdentified), "which disk each of them is; see vmlockctl identify PATH")
				return
			}
			id, err := x.Identify(ctx, k.path)
			if err != nil {
				x.unchecked(definedDir, err, "which disks they are that virtual machines use")
				return
			}
			x.disks[k.path] = id
			where := fmt.Sprintf("%s, disk %s", d, k.target)
			switch {
			case id.Error != "":
				x.find(idNoIdentity, where, "vmlockctl identify "+k.path, "which disk %s is cannot be told, and no lock is granted: %s", k.path, id.Error)
			case id.Doubt && id.Name != "" && !path.IsAbs(id.Name):
				x.find(idByPath, where, otherNameRemedy(k.path, id.Type), "%s is on %s and locked as %s, in which hosts may differ: where another has another name for it, it can be used twice", k.path, id.Type, id.Name)
			case id.Doubt && id.Type != "":
				x.find(idByPath, where, fmt.Sprintf("in vmlockd.toml of all hosts: [[identity.rule]] %s, scope = \"cluster\" (or \"host\"); see docs/identity.md", ruleFor(k.path, id.Type)),
					"%s is on %s, of which it is not known whether other hosts can use it: it is locked by its path in the whole cluster, so under another path there it can be used twice, and equal paths are refused for different disks", k.path, kindText(id.Type))
			}
		}
	}
}

// kindText says what a type is, where its name alone does not.
func kindText(typ string) string {
	switch typ {
	case "character":
		return "a character device"
	case "unknown":
		return "a mount that vmlockd does not see"
	}
	return typ
}

// ruleFor begins a rule for a disk and those that are like it.
func ruleFor(p, typ string) string {
	if strings.HasPrefix(p, "/dev/") {
		return fmt.Sprintf("type = %q", typ)
	}
	return fmt.Sprintf("path = %q", path.Dir(p)+"/**")
}

// otherNameRemedy is what to do about a name in which hosts may differ.
func otherNameRemedy(p, typ string) string {
	compare := "compare what all hosts call it: vmlockctl identify --cluster " + p
	if typ == "cifs" || typ == "smb3" {
		compare = "mount the share with serverino on all hosts; where none can, " + compare
	}
	return fmt.Sprintf("%s; if it is the same, say so in vmlockd.toml of all hosts: [[identity.rule]] %s, scope = \"cluster\"; if not, give it a name there; see docs/identity.md", compare, ruleFor(p, typ))
}

// namedOtherwise says that a disk is not locked by this path, but by what it is: libvirt
// asks for a SCSI unit's id, and for a volume's, where it has a lockspace for that.
func (x *exam) namedOtherwise(p string) bool {
	if x.libvirt.scsiDir != "" && strings.HasPrefix(p, "/dev/sd") || x.libvirt.lvmDir != "" && strings.HasPrefix(p, "/dev/dm-") {
		return true
	}
	id, ok := x.disks[p]
	return ok && !id.ByPath && id.Error == ""
}
