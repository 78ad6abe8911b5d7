package abi

import (
	"bytes"
	"errors"
	"testing"
	"unsafe"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// The numbers are those of gcc on x86_64 for <linux/dlm_device.h>.
func TestLayout(t *testing.T) {
	var (
		h  WriteHeader
		l  LockParams
		s  LspaceParams
		p  PurgeParams
		b  Lksb
		r  LockResult
		is = func(what string, got, want uintptr) {
			t.Helper()
			if got != want {
				t.Errorf("%s is %d, the kernel's is %d", what, got, want)
			}
		}
	)
	is("sizeof header", unsafe.Sizeof(h), HeaderSize)
	is("header.cmd", unsafe.Offsetof(h.Cmd), 12)
	is("header.is64bit", unsafe.Offsetof(h.Is64bit), 13)

	is("sizeof lock", unsafe.Sizeof(l), RequestSize-HeaderSize)
	is("lock.namelen", unsafe.Offsetof(l.Namelen), 1)
	is("lock.flags", unsafe.Offsetof(l.Flags), 4)
	is("lock.lkid", unsafe.Offsetof(l.Lkid), 8)
	is("lock.parent", unsafe.Offsetof(l.Parent), 12)
	is("lock.xid", unsafe.Offsetof(l.Xid), 16)
	is("lock.timeout", unsafe.Offsetof(l.Timeout), 24)
	is("lock.castparam", unsafe.Offsetof(l.Castparam), 32)
	is("lock.castaddr", unsafe.Offsetof(l.Castaddr), 40)
	is("lock.bastparam", unsafe.Offsetof(l.Bastparam), 48)
	is("lock.bastaddr", unsafe.Offsetof(l.Bastaddr), 56)
	is("lock.lksb", unsafe.Offsetof(l.Lksb), 64)
	is("lock.lvb", unsafe.Offsetof(l.Lvb), 72)

	is("sizeof lspace", unsafe.Sizeof(s), 8)
	is("lspace.minor", unsafe.Offsetof(s.Minor), 4)
	is("sizeof purge", unsafe.Sizeof(p), 8)
	is("purge.pid", unsafe.Offsetof(p.Pid), 4)

	is("sizeof lksb", unsafe.Sizeof(b), 24)
	is("lksb.lkid", unsafe.Offsetof(b.Lkid), 4)
	is("lksb.flags", unsafe.Offsetof(b.Flags), 8)
	is("lksb.lvbptr", unsafe.Offsetof(b.Lvbptr), 16)

	is("sizeof result", unsafe.Sizeof(r), ResultSize)
	is("result.length", unsafe.Offsetof(r.Length), 12)
	is("result.user_astaddr", unsafe.Offsetof(r.UserAstaddr), 16)
	is("result.user_astparam", unsafe.Offsetof(r.UserAstparam), 24)
	is("result.user_lksb", unsafe.Offsetof(r.UserLksb), 32)
	is("result.lksb", unsafe.Offsetof(r.Lksb), 40)
	is("result.bast_mode", unsafe.Offsetof(r.BastMode), 64)
	is("result.lvb_offset", unsafe.Offsetof(r.LvbOffset), 68)
}

func TestRequestsComeBack(t *testing.T) {
	in := LockParams{Mode: 5, Flags: FlagNoQueue | FlagPersistent, Lkid: 7, Castparam: 1 << 40, Castaddr: 1, Bastparam: 3, Bastaddr: 2, Lksb: 9}
	in.Lvb[31] = 0xee
	got, err := DecodeRequest(EncodeLock(CmdLock, in, "disk\x00a"))
	if err != nil {
		t.Fatal(err)
	}
	in.Namelen = 6
	if got.Cmd != CmdLock || got.Lock != in || got.Name != "disk\x00a" {
		t.Errorf("lock came back as %+v", got)
	}

	buf := EncodeLspace(CmdCreateLockspace, LspaceNewExcl, 3, "space")
	if len(buf) != RequestSize {
		t.Errorf("a create request has %d bytes; the kernel takes no fewer than %d", len(buf), RequestSize)
	}
	if got, err = DecodeRequest(buf); err != nil || got.Name != "space" || got.Lspace.Flags != LspaceNewExcl || got.Lspace.Minor != 3 {
		t.Errorf("create came back as %+v, %v", got, err)
	}
	if got, err = DecodeRequest(EncodePurge(4, 5)); err != nil || got.Purge.Nodeid != 4 || got.Purge.Pid != 5 {
		t.Errorf("purge came back as %+v, %v", got, err)
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	good := EncodeLock(CmdLock, LockParams{}, "x")
	change := func(i int, v byte) []byte {
		b := bytes.Clone(good)
		b[i] = v
		return b
	}
	for name, c := range map[string]struct {
		buf  []byte
		want error
	}{
		"short":          {good[:RequestSize-1], ErrSize},
		"long":           {make([]byte, RequestMax+1), ErrSize},
		"other major":    {change(0, 5), ErrVersion},
		"newer minor":    {change(4, 1), ErrVersion},
		"32 bit":         {change(13, 0), ErrFormat},
		"unknown cmd":    {change(12, 77), ErrFormat},
		"name too short": {change(HeaderSize+1, 2), ErrFormat},
	} {
		if _, err := DecodeRequest(c.buf); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
}

func TestResultsComeBack(t *testing.T) {
	lvb := [LVBLen]byte{1, 2, 3}
	r := LockResult{UserAstaddr: 1, UserAstparam: 99, UserLksb: 98, Lksb: Lksb{Status: StatusCancel, Lkid: 5, Flags: SbfValNotValid}, BastMode: 3}
	got, gotLVB, err := DecodeResult(EncodeResult(r, &lvb))
	if err != nil {
		t.Fatal(err)
	}
	if got.UserAstparam != 99 || got.Lksb.Status != StatusCancel || got.Lksb.Lkid != 5 || got.BastMode != 3 || !bytes.Equal(gotLVB, lvb[:]) {
		t.Errorf("result came back as %+v, LVB %x", got, gotLVB)
	}
	if _, gotLVB, err = DecodeResult(EncodeResult(r, nil)); err != nil || gotLVB != nil {
		t.Errorf("a result without LVB came back with %x, %v", gotLVB, err)
	}
}

func FuzzDecodeResult(f *testing.F) {
	lvb := [LVBLen]byte{1}
	good := EncodeResult(LockResult{UserAstaddr: 1, UserAstparam: 2}, &lvb)
	f.Add(good)
	f.Add(good[:ResultSize])
	f.Add(good[:ResultSize-1])
	f.Add(EncodeResult(LockResult{UserAstaddr: 2, BastMode: 200}, nil))
	far := bytes.Clone(good)
	copy(far[68:], []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(far)
	f.Fuzz(func(t *testing.T, buf []byte) {
		var r LockResult
		var lvb []byte
		var err error
		testenv.Bounded(t, 1, len(buf), func() { r, lvb, err = DecodeResult(buf) })
		if err != nil {
			return
		}
		if lvb != nil && len(lvb) != LVBLen {
			t.Fatalf("an LVB of %d bytes from %+v", len(lvb), r)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(EncodeLock(CmdLock, LockParams{Mode: 5}, "name"))
	f.Add(EncodeLspace(CmdCreateLockspace, 0, 0, "ls"))
	f.Add(EncodePurge(1, 0))
	f.Fuzz(func(t *testing.T, buf []byte) {
		var r Request
		var err error
		testenv.Bounded(t, 1, len(buf), func() { r, err = DecodeRequest(buf) })
		if err == nil && len(r.Name) > len(buf) {
			t.Fatalf("a name longer than its request: %+v", r)
		}
	})
}
