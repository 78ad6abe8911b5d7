// Package identity finds out which disk a path leads to: a name that is the same
// on every host that has the disk, and that no other disk has; or one that counts
// on this host only, if what is there cannot be reached from another.
//
// What it promises:
//
//   - All paths to one thing - symbolic and hard links, bind mounts, "..", device
//     nodes - have one name at a time, as far as the kernel tells what the thing is.
//     Where it does not (Identity.ByPath), Identity.Local still tells on this host.
//   - Doubt widens: what may be shared with other hosts counts in the cluster, and
//     has a name that is rather that of several disks than one of several for a disk.
//     What contradicts itself is an error.
//   - No program is run, no device is opened and no block is read: what counts is in
//     sysfs, mountinfo, statx(2), and for two file systems statfs(2) or getxattr(2).
//   - A file system that hangs delays those who ask for its files, and nobody else:
//     see Resolver.
//
// A path is looked up as this process sees it, in its own mount namespace.
//
// A Resolver may be used from many goroutines.
package identity
