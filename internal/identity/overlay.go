package identity

import "fmt"

// overlay names a file by its place in the overlay and not by its inode: what the
// first write copies into the upper layer may have another device and inode from then
// on, as it does if the lower file has several hard links, or if the lower file system
// has no file handles (Documentation/filesystems/overlayfs.rst, "Inode properties" and
// "Non-standard behavior"). QEMU's opening it is such a write, and comes after the lock.
//
// Local stays the inode: it leads from a hard link or a new name to what is held, as
// long as nothing is copied up; and after that the same place still has the same name.
func (l *lookup) overlay(id *Identity, m *mount, n node) error {
	in, ok := m.inside(n.path)
	if !ok || m.root != "/" || m.id != n.mount {
		// The kernel does not tell of a change when a directory is renamed that is bound
		// elsewhere, or above a mount.
		table, err := l.host.mounts(true)
		if err != nil {
			return fmt.Errorf("read mountinfo: %w", err)
		}
		if m = table.byID[m.id]; m != nil && m.id == n.mount {
			in, ok = m.inside(n.path)
		} else {
			ok = false
		}
	}
	if !ok {
		id.byPath("where it is in its overlay is not known, as that is a mount of another namespace, or has just been moved")
		return nil
	}
	id.Scope, id.Name, id.ByPath = Host, fmt.Sprintf("overlay %s %s", m.dev, in), true
	id.step("an overlay is of this host alone, and the inode of a file in it may be another after the first write, so %s in it is its name", in)
	return nil
}
