// Package adminprogram serves libvirt's admin program, by which virt-admin looks at
// a daemon and changes how it runs: its servers and their clients, limits, logging
// and the time after which it ends when it is idle.
//
// Numbers, structures and bounds are those of src/admin/admin_protocol.x in libvirt
// 9.0. Which errors there are, in which order, and their words follow virtlockd 9.0,
// whose behaviour was observed on the wire, except where docs/virt-admin.md says
// otherwise.
//
// What it promises:
//
//   - Whatever a client sends, it gets a result or an error; nothing is changed by
//     a call that gets an error.
//   - It keeps nothing of what clients send, and its answers are bounded by the
//     limits of the protocol.
//   - Who may connect is not its business: rpc.Options.Allow says that.
//
// A Program may be used from many goroutines, once its servers are added.
package adminprogram
