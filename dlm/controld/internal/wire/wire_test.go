package wire

import (
	"testing"
	"unsafe"
)

// The numbers are those of the C compiler for dlm_controld.h and libdlmcontrol.h on amd64.
func TestLayout(t *testing.T) {
	var h DlmcHeader
	var s DlmcState
	var n DlmcNode
	var c DlmcChange
	var l DlmcLockspace
	for _, f := range []struct {
		what      string
		got, want uintptr
	}{
		{"dlmc_header", unsafe.Sizeof(h), HeaderSize},
		{"dlmc_header.command", unsafe.Offsetof(h.Command), 8},
		{"dlmc_header.len", unsafe.Offsetof(h.Len), 16},
		{"dlmc_header.data", unsafe.Offsetof(h.Data), 20},
		{"dlmc_header.name", unsafe.Offsetof(h.Name), 32},
		{"dlmc_state", unsafe.Sizeof(s), StateSize},
		{"dlmc_state.nodeid", unsafe.Offsetof(s.Nodeid), 8},
		{"dlmc_state.str_len", unsafe.Offsetof(s.StrLen), 20},
		{"dlmc_state.bin_len", unsafe.Offsetof(s.BinLen), 24},
		{"dlmc_node", unsafe.Sizeof(n), NodeSize},
		{"dlmc_node.fail_reason", unsafe.Offsetof(n.FailReason), 16},
		{"dlmc_node.fail_walltime", unsafe.Offsetof(n.FailWalltime), 24},
		{"dlmc_change", unsafe.Sizeof(c), ChangeSize},
		{"dlmc_change.wait_condition", unsafe.Offsetof(c.WaitCondition), 16},
		{"dlmc_change.seq", unsafe.Offsetof(c.Seq), 24},
		{"dlmc_lockspace", unsafe.Sizeof(l), LockspaceSize},
		{"dlmc_lockspace.cg_next", unsafe.Offsetof(l.CgNext), 32},
		{"dlmc_lockspace.flags", unsafe.Offsetof(l.Flags), 64},
		{"dlmc_lockspace.name", unsafe.Offsetof(l.Name), 72},
	} {
		if f.got != f.want {
			t.Errorf("%s: %d, want %d", f.what, f.got, f.want)
		}
	}
	for _, v := range []struct {
		what string
		v    any
		want int
	}{{"dlmc_header", h, HeaderSize}, {"dlmc_state", s, StateSize}, {"dlmc_node", n, NodeSize}, {"dlmc_lockspace", l, LockspaceSize}} {
		if got := len(Append(nil, v.v)); got != v.want {
			t.Errorf("%s: %d bytes, want %d", v.what, got, v.want)
		}
	}
}
