// Package doctor looks at a host and says what is wrong with it: from the kernel's
// module over corosync, dlm_controld and vmlockd to libvirt's configuration and the
// disks of virtual machines. Each finding has a stable id, says what is wrong and
// where, and has a remedy.
//
// What it promises:
//
//   - It changes nothing, runs no program, and opens no disk, so that storage that
//     hangs does not make it hang. Facts come from files (/etc, /proc, /sys, /run),
//     from dlm_controld's questions that are safe to ask, and from the daemon, to
//     whose sockets alone it connects.
//   - What cannot be looked at is a finding of its own, Unchecked with the reason,
//     and never taken for healthy.
//   - A host with nothing wrong has no finding at all.
//   - All that is read and reported is bounded.
//
// The checks are plain functions over the ports System, Controld and Daemon. Examine
// may be called from many goroutines; each call looks anew.
package doctor
