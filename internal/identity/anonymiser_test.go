package identity

import (
	"bytes"
	"fmt"
	"math/bits"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// shape is a text with a letter or digit for each letter or digit of its kind.
func shape(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c >= '0' && c <= '9':
			return '0'
		case c >= 'a' && c <= 'z':
			return 'a'
		case c >= 'A' && c <= 'Z':
			return 'A'
		}
		return c
	}, s)
}

// hexShape has no difference between digits and the letters that are digits too.
func hexShape(s string) string { return regexp.MustCompile(`[0-9a-fA-F]`).ReplaceAllString(s, "0") }

// TestAnonymiser: each kind of value that tells something, in what it comes in. What is in secrets must be gone.
func TestAnonymiser(t *testing.T) {
	for _, tc := range []struct {
		what, text string
		shape      func(string) string
		secrets    []string
	}{
		{"a UUID", "6d0f0c36-1c0e-4c4d-9a0a-3c8b7c2f1e11", hexShape, []string{"d0f0c36", "1c0e", "3c8b7c2f1e11"}},
		{"a UUID in capitals", "6D0F0C36-1C0E-4C4D-9A0A-3C8B7C2F1E11", hexShape, []string{"D0F0C36"}},
		{"as udev has one of md", "md-uuid-0a1b2c3d:4e5f6071:8293a4b5:c6d7e8f9", hexShape, []string{"a1b2c3d", "c6d7e8f9"}},
		{"a volume of LVM", "LVM-Q3cwEkfJgCd8SUEYyVnrR7vVYlf3XqWxAe1LhKpYV7bTq0DLmRzvfPzL6sJc2XkU-cow", shape, []string{"Q3cwEkfJ", "vVYlf3XqWx", "Ae1LhKpY"}},
		{"an encrypted volume", "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-payroll", nil, []string{"123456789abcdef", "payroll"}},
		{"a map of multipath", "mpath-3600140512345678901234567890abcde", hexShape, []string{"600140512345678901234567890abcde", "890abcde"}},
		{"a WWID", "naa.600140512345678901234567890abcde", hexShape, []string{"00140512345678901234567890abcde"}},
		{"a WWID of a vendor", "t10.ATA     Acme SSD 980  S5GXNF0R123456", shape, []string{"ATA", "Acme", "S5GXNF0R123456"}},
		{"a WWID of NVMe", "nvme.144d-53344e58-53616d73-00000001", shape, []string{"144d", "53344e58", "53616d73"}},
		{"an IQN", "iqn.2010-10.com.acme:storage.lun1", shape, []string{"acme", "storage"}},
		{"an address", "10.20.30.40:/export", nil, []string{"10.20.30.40"}},
		{"an address of IPv6", "fd12:3456:789a::1", nil, []string{"3456", "789a"}},
		{"a host's name", "filer7.corp.acme.com:/export/payroll", shape, []string{"filer7", "corp", "acme", "payroll"}},
		{"a share", `//Filer7/Payroll`, shape, []string{"Filer7", "Payroll"}},
		{"a path of the host", "/run/someone/t8899-1/work/shared", shape, []string{"someone", "t8899"}},
	} {
		out := newAnonymiser().text(tc.text)
		if tc.shape != nil && tc.shape(out) != tc.shape(tc.text) {
			t.Errorf("%s: %q becomes %q, of another shape", tc.what, tc.text, out)
		}
		for _, s := range tc.secrets {
			if strings.Contains(strings.ToLower(out), strings.ToLower(s)) {
				t.Errorf("%s: %q is still in %q", tc.what, s, out)
			}
		}
		a := newAnonymiser()
		a.text("other.org 10.9.8.7")
		if again := a.text(tc.text); again != out {
			t.Errorf("%s: %q becomes %q here and %q there", tc.what, tc.text, out, again)
		}
		if left := a.left(out); len(left) > 0 {
			t.Errorf("%s: left of it is %q", tc.what, left)
		}
		if left := a.left(out + " " + tc.text); len(left) == 0 {
			t.Errorf("%s: nothing is said to be left of it where it is still there", tc.what)
		}
	}
	for _, kept := range []string{"/dev/vms/web", "/dev/mapper/vms-web", "192.0.2.3:/a", "198.51.100.7", "naa.0000000000000000", "iqn.2003-01.org.example:store/7",
		"/sys/devices/virtual/block/dm-0", "overlay 0:20 /usr/bin/dash", "18446744073709551614"} {
		if got := newAnonymiser().text(kept); got != kept && !strings.HasPrefix(kept, "/sys/") {
			t.Errorf("%q becomes %q", kept, got)
		}
		if got := newAnonymiser().path(kept); got != kept {
			t.Errorf("the path %q becomes %q", kept, got)
		}
	}
}

// TestAnonymiserKeepsRelations: what the kernel or a tool has made of one value is what
// they would make of its replacement.
func TestAnonymiserKeepsRelations(t *testing.T) {
	const digits = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
	a := newAnonymiser()
	to := a.text(digits)
	for _, same := range []string{"0a1b2c3d:4e5f6071:8293a4b5:c6d7e8f9", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "0A1B2C3D-4E5F-6071-8293-A4B5C6D7E8F9"} {
		if got := hexDigits(a.text(same)); got != to {
			t.Errorf("%s becomes %s, and %s %s", digits, to, same, got)
		}
	}
	wwid, _ := strings.CutPrefix(a.text("naa."+digits), "naa.")
	if mpath := a.text("mpath-3" + digits); mpath != "mpath-3"+wwid {
		t.Errorf("naa.%s and %s", wwid, mpath)
	}
	if lower, upper := a.text("iqn.2010-10.com.acme:Disk"), a.text("iqn.2010-10.com.acme:disk"); strings.ToLower(lower) != upper || lower == upper {
		t.Errorf("%s and %s", lower, upper)
	}
	uuid := a.text("LVM-Q3cwEkfJgCd8SUEYyVnrR7vVYlf3XqWxAe1LhKpYV7bTq0DLmRzvfPzL6sJc2XkU")
	if name := a.text("lvm:Q3cwEkfJgCd8SUEYyVnrR7vVYlf3XqWx/Ae1LhKpYV7bTq0DLmRzvfPzL6sJc2XkU"); name != "lvm:"+uuid[4:36]+"/"+uuid[36:] {
		t.Errorf("%s and %s", uuid, name)
	}
	cluster, err := foldUUID(a.text("1b7c5a1e-0f0c-4c4d-9a0a-3c8b7c2f1e11"))
	if name := a.text("ceph:c93455f2:7"); err != nil || name != fmt.Sprintf("ceph:%08x:7", cluster) || cluster == 0xc93455f2 {
		t.Errorf("%08x, %v, and %s", cluster, err, name)
	}
	page := slices.Concat([]byte{0, 0x83, 0, 12, 1, 3, 0, 8}, []byte("\x50\x01\x40\x51\x23\x45\x67\x89"))
	if got, want := pickDesignator(a.content("/sys/x/vpd_pg83", page)), a.text("naa.5001405123456789"); got != want || got == "naa.5001405123456789" {
		t.Errorf("the page has %s, and the kernel's text of it is %s", got, want)
	}
	if !bytes.Contains(page, []byte("\x50\x01\x40\x51")) {
		t.Error("the page itself was changed")
	}

	rapid.Check(t, func(t *rapid.T) {
		major, minor := rapid.Uint64().Draw(t, "major"), rapid.Uint64().Draw(t, "minor")
		if rapid.Bool().Draw(t, "as configured") {
			minor = major
		}
		a := newAnonymiser()
		x, y := a.fsids(major, minor)
		v4, err := nfsFSID(fmt.Sprintf("%x:%x", x, y))
		if err != nil {
			t.Fatal(err)
		}
		folded := major ^ minor
		if major == minor {
			folded = major
		}
		for _, v3 := range []uint64{folded, bits.ReverseBytes64(folded)} {
			x, y := a.fsids(v3, 0)
			if n, err := nfsFSID(fmt.Sprintf("%x:%x", x, y)); err != nil || n != v4 {
				t.Fatalf("%x:%x is %x in NFSv4, and %x in NFSv3 (%v)", major, minor, v4, n, err)
			}
		}
		if name := a.text(fmt.Sprintf("nfs:%016x:7", min(folded, bits.ReverseBytes64(folded)))); name != fmt.Sprintf("nfs:%016x:7", v4) {
			t.Fatalf("the name is %s, and made of its parts %016x", name, v4)
		}
		if len(a.errs) != 0 {
			t.Fatal(a.errs)
		}
	})
}

// TestAnonymiserIsInjective: what differs differs still, or it says that it does not.
func TestAnonymiserIsInjective(t *testing.T) {
	value := rapid.OneOf(
		rapid.StringMatching(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`),
		rapid.StringMatching(`naa\.[356][0-9a-f]{15}`),
		rapid.StringMatching(`LVM-[0-9A-Za-z]{64}`),
		rapid.StringMatching(`iqn\.2010-10\.com\.acme:[a-z]{1,6}[0-9]{1,3}`),
		rapid.StringMatching(`[a-z]{1,9}(-[a-z0-9]{1,9})?`),
		rapid.StringMatching(`[1-9][0-9]?\.[1-9][0-9]?\.[1-9][0-9]?\.[1-9][0-9]?`),
	)
	rapid.Check(t, func(t *rapid.T) {
		a := newAnonymiser()
		from := map[string]string{}
		for _, v := range rapid.SliceOfN(value, 1, 12).Draw(t, "values") {
			to := a.text(v)
			if was, ok := from[to]; ok && was != v && len(a.errs) == 0 {
				t.Fatalf("%q and %q both become %q", was, v, to)
			}
			from[to] = v
		}
	})
	a := newAnonymiser()
	a.note("one", "same", "")
	if a.note("two", "same", ""); len(a.errs) != 1 {
		t.Errorf("two values with one replacement: %v", a.errs)
	}
}

func TestAnonymisedAddresses(t *testing.T) {
	a := newAnonymiser()
	for _, address := range []string{"10.0.0.1", "8.8.8.8", "fe80::1", "203.0.114.1"} {
		to := a.ip(netip.MustParseAddr(address))
		if !netip.MustParsePrefix("198.18.0.0/15").Contains(to) && !netip.MustParsePrefix("2001:db8::/32").Contains(to) {
			t.Errorf("%s becomes %s, which somebody may have", address, to)
		}
	}
	line := "v4 0a141e28  801 0:45         6b2f00112233aabb:1020304050607080 no\n"
	got := string(a.content("/proc/fs/nfsfs/volumes", []byte("NV SERVER   PORT DEV          FSID                              FSC\n"+line)))
	if hexShape(got[strings.Index(got, "\n")+1:]) != hexShape(line) || strings.Contains(got, "0a141e28") || strings.Contains(got, "6b2f") || strings.Contains(got, "3040") {
		t.Errorf("%s", got)
	}
}
