package rpc

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestXDR(t *testing.T) {
	e := NewEncoder(nil)
	e.Uint32(0xdeadbeef)
	e.Int32(-2)
	e.Uint64(0x0102030405060708)
	e.Bool(true)
	e.Bool(false)
	e.Opaque([]byte{1, 2, 3, 4, 5})
	e.String("a")
	e.String("")
	e.OptionalString("")
	e.OptionalString("four")
	want := "\xde\xad\xbe\xef" + "\xff\xff\xff\xfe" + "\x01\x02\x03\x04\x05\x06\x07\x08" + "\x00\x00\x00\x01" + "\x00\x00\x00\x00" +
		"\x01\x02\x03\x04\x05\x00\x00\x00" + "\x00\x00\x00\x01a\x00\x00\x00" + "\x00\x00\x00\x00" +
		"\x00\x00\x00\x00" + "\x00\x00\x00\x01\x00\x00\x00\x04four"
	if diff := cmp.Diff(want, string(e.Bytes())); diff != "" {
		t.Fatal(diff)
	}
	d := NewDecoder(e.Bytes())
	if v := d.Uint32(); v != 0xdeadbeef {
		t.Error(v)
	}
	if v := d.Int32(); v != -2 {
		t.Error(v)
	}
	if v := d.Uint64(); v != 0x0102030405060708 {
		t.Error(v)
	}
	if !d.Bool() || d.Bool() {
		t.Error("bools")
	}
	if v := d.Opaque(5); !bytes.Equal(v, []byte{1, 2, 3, 4, 5}) {
		t.Error(v)
	}
	if v := d.String(1); string(v) != "a" {
		t.Error(v)
	}
	if v := d.String(0); string(v) != "" {
		t.Error(v)
	}
	if a, b := d.OptionalString(9), d.OptionalString(9); a != "" || b != "four" {
		t.Error(a, b)
	}
	if !d.OK() || d.Remaining() != 0 {
		t.Error("not all was read")
	}
	// Whatever is missing, it fails, and goes on failing.
	for n := range len(want) {
		d.Reset([]byte(want[:n]))
		d.Uint32()
		d.Int32()
		d.Uint64()
		d.Bool()
		d.Bool()
		d.Opaque(5)
		d.String(1)
		d.String(0)
		d.OptionalString(9)
		d.OptionalString(9)
		if d.OK() || d.Uint32() != 0 || d.Remaining() != 0 {
			t.Errorf("%d bytes were enough", n)
		}
	}
}

func TestDecodeString(t *testing.T) {
	tests := []struct {
		in    string
		limit int
		want  string
		ok    bool
	}{
		{"\x00\x00\x00\x02ab\x00\x00", 2, "ab", true},
		{"\x00\x00\x00\x02ab\x01\xff", 2, "ab", true}, // padding may hold anything
		{"\x00\x00\x00\x02ab\x00\x00more", 2, "ab", true},
		{"\x00\x00\x00\x03ab\x00", 2, "", false}, // longer than the limit
		{"\x00\x00\x00\x02ab", 2, "", false},     // no padding
		{"\x00\x00\x00\x04a\x00bc", 9, "a", true},
		{"\x00\x00\x00\x02\x00\x00\x00\x00", 9, "", true},
		{"\xff\xff\xff\xffabcd", 1 << 30, "", false},
		{"\x7f\xff\xff\xffabcd", 1 << 40, "", false},
		{"\x00\x00\x00", 9, "", false},
	}
	for _, test := range tests {
		d := NewDecoder([]byte(test.in))
		got := string(d.String(test.limit))
		if got != test.want || d.OK() != test.ok {
			t.Errorf("%q with limit %d: %q, %v", test.in, test.limit, got, d.OK())
		}
	}
}

func TestErrorOnTheWire(t *testing.T) {
	for _, e := range []*Error{
		NewError(CodeResourceBusy, DomainLockspace, "Lockspace resource 'x' is locked"),
		NewError(CodeSystem, DomainNone, "100% of %s"),
		{Code: 8, Domain: 7, Level: 1, Message: "m", Str1: "f", Str2: "flags", Str3: "3", Int1: 5, Int2: -6},
		{Code: 1, Level: 2},
	} {
		enc := NewEncoder(nil)
		e.EncodeXDR(enc)
		d := NewDecoder(enc.Bytes())
		var got Error
		got.DecodeXDR(d)
		if diff := cmp.Diff(*e, got); diff != "" || !d.OK() || d.Remaining() != 0 {
			t.Errorf("%v, %d bytes left\n%s", d.OK(), d.Remaining(), diff)
		}
	}
	if got := NewError(CodeSystem, DomainNone, "100% of %s").Message; got != "100% of %s" {
		t.Error(got)
	}
	// What cannot be a C string is cut, and nothing gets too long for libvirt.
	enc := NewEncoder(nil)
	(&Error{Message: "a\x00b", Str1: strings.Repeat("x", 2*maxErrorText)}).EncodeXDR(enc)
	var got Error
	d := NewDecoder(enc.Bytes())
	got.DecodeXDR(d)
	if !d.OK() || got.Message != "a" || len(got.Str1) != maxErrorText || got.Level != levelError {
		t.Errorf("%v %q %d", d.OK(), got.Message, len(got.Str1))
	}
	// With the parts that only libvirt's other daemons fill.
	enc = NewEncoder(nil)
	enc.Int32(1)
	enc.Int32(2)
	enc.OptionalString("m")
	enc.Int32(2)
	enc.Bool(true)
	enc.String("domain")
	enc.Opaque(make([]byte, 16))
	enc.Int32(4)
	enc.OptionalString("1")
	enc.OptionalString("2")
	enc.OptionalString("3")
	enc.Int32(5)
	enc.Int32(6)
	enc.Bool(true)
	enc.String("net")
	enc.Opaque(make([]byte, 16))
	d.Reset(enc.Bytes())
	got.DecodeXDR(d)
	if want := (Error{1, 2, "m", 2, "1", "2", "3", 5, 6}); got != want || !d.OK() || d.Remaining() != 0 {
		t.Errorf("%+v", got)
	}
}

func FuzzDecoder(f *testing.F) {
	enc := NewEncoder(nil)
	NewError(CodeInternal, DomainRPC, "x").EncodeXDR(enc)
	f.Add(enc.Bytes())
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var e Error
		d := NewDecoder(in)
		testenv.Bounded(t, 10, len(in), func() { e.DecodeXDR(d) })
		if !d.OK() {
			return
		}
		if len(e.Message)+len(e.Str1)+len(e.Str2)+len(e.Str3) > len(in) {
			t.Fatal("more was decoded than there is")
		}
		// What was decoded is the same after another round, as far as it is sent.
		enc := NewEncoder(nil)
		e.EncodeXDR(enc)
		var again Error
		d.Reset(enc.Bytes())
		again.DecodeXDR(d)
		if e.Level == 0 {
			e.Level = levelError
		}
		for _, s := range []*string{&e.Message, &e.Str1, &e.Str2, &e.Str3} {
			*s = sendable(*s)
		}
		if !d.OK() || again != e {
			t.Fatalf("%+v became %+v", e, again)
		}
	})
}
