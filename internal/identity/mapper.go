package identity

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/lazyregexp"
)

// A device of the device mapper has a name and a UUID, which whoever made it has
// given it; both are in sysfs. The UUID begins with what that was.
var (
	lvmUUID   = lazyregexp.New(`^LVM-([0-9A-Za-z]{32})([0-9A-Za-z]{32})(-.+)?$`)
	cryptUUID = lazyregexp.New(`^(CRYPT-[0-9A-Z]+-[0-9a-f]{32})-`)
	partUUID  = lazyregexp.New(`^part(\d+)-`)
)

func (l *lookup) mapper(id *Identity, dir string, depth int) error {
	id.Type = TypeMapper
	name, uuid := l.read(dir, "dm/name"), l.read(dir, "dm/uuid")
	if name != "" {
		id.Path = "/dev/mapper/" + name
	}
	switch m := lvmUUID().FindStringSubmatch(uuid); {
	case m != nil:
		id.Type = TypeLVM
		id.Name = "lvm:" + m[1] + "/" + m[2] + m[3]
		id.step("%s is the logical volume %s%s of the volume group %s", id.Path, m[2], m[3], m[1])
		return nil
	case strings.HasPrefix(uuid, "mpath-"):
		id.Type = TypeMultipath
		return l.fromBelow(id, dir, onePath, "", depth)
	case strings.HasPrefix(uuid, "CRYPT-"):
		id.Type = TypeCrypt
		if c := cryptUUID().FindStringSubmatch(uuid); c != nil {
			// What follows is the name that this host gave it.
			id.Name = "dm:" + c[1]
			id.step("%s is the encrypted volume %s", id.Path, c[1])
			return nil
		}
		return l.fromBelow(id, dir, allBelow, "", depth)
	case partUUID().MatchString(uuid):
		return l.fromBelow(id, dir, onePath, "-part"+partUUID().FindStringSubmatch(uuid)[1], depth)
	case uuid != "":
		id.Name = "dm:" + uuid
		id.step("%s is the mapped device with UUID %s", id.Path, uuid)
		return nil
	}
	// Its name says nothing on another host, and neither does what part of the devices
	// below it shows: so all that lie upon these are one.
	id.step("%s has no UUID", id.Path)
	return l.fromBelow(id, dir, allBelow, "", depth)
}

// How a device lies upon others.
type lies bool

const (
	onePath  lies = false // each is a path to the same disk
	allBelow lies = true  // it shows parts of all of them
)

// fromBelow names a device after those that it lies upon.
func (l *lookup) fromBelow(id *Identity, dir string, how lies, suffix string, depth int) error {
	slaves, err := l.list(dir, "slaves")
	if err != nil {
		return fmt.Errorf("list what %s lies upon: %w", id.Path, err)
	}
	var names []string
	for _, s := range slaves {
		at, err := l.real(dir, "slaves", s)
		if err != nil {
			return fmt.Errorf("what %s lies upon has just changed: %w", id.Path, err)
		}
		under, err := l.blockAt(at, depth+1)
		id.Steps = append(id.Steps, under.Steps...)
		if err != nil {
			return err
		}
		id.ByPath, id.Doubt = id.ByPath || under.ByPath, id.Doubt || under.Doubt
		if under.Scope == Host {
			id.Scope = Host // a loop device over a file of this host alone
		}
		if !slices.Contains(names, under.Name) {
			names = append(names, under.Name)
		}
	}
	slices.Sort(names)
	switch {
	case len(names) == 0 && how == allBelow:
		return nil // such as one of target zero: nothing is known
	case len(names) == 0:
		return fmt.Errorf("%w: %s has no path to its disk at the moment", ErrContradiction, id.Path)
	case how == allBelow:
		id.Name = "dm-on:" + strings.Join(names, "+")
	case len(names) > 1:
		return fmt.Errorf("%w: %s lies upon several: %s", ErrContradiction, id.Path, strings.Join(names, ", "))
	default:
		id.Name = names[0] + suffix
	}
	id.step("%s lies upon %s, and has its name from there", id.Path, strings.Join(names, " and "))
	return nil
}
