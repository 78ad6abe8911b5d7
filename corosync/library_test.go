//go:build linux && (amd64 || arm64)

package corosync

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"
)

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"struct cpg_name", unsafe.Sizeof(cpgName{}), 132},
		{"cpg_name.value", unsafe.Offsetof(cpgName{}.value), 4},
		{"struct cpg_address", unsafe.Sizeof(cpgAddress{}), 12},
		{"cpg_address.pid", unsafe.Offsetof(cpgAddress{}.pid), 4},
		{"cpg_address.reason", unsafe.Offsetof(cpgAddress{}.reason), 8},
		{"cpg_callbacks_t", unsafe.Sizeof(cpgCallbacks{}), 16},
		{"cpg_callbacks_t.cpg_confchg_fn", unsafe.Offsetof(cpgCallbacks{}.confchg), 8},
		{"quorum_model_v1_data_t", unsafe.Sizeof(quorumModelV1{}), 24},
		{"quorum_model_v1_data_t.quorum_notify_fn", unsafe.Offsetof(quorumModelV1{}.quorumNotify), 8},
		{"quorum_model_v1_data_t.nodelist_notify_fn", unsafe.Offsetof(quorumModelV1{}.nodelistNotify), 16},
		{"struct iovec", unsafe.Sizeof(iovec{}), 16},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.what, c.got, c.want)
		}
	}
}

func TestValueOf(t *testing.T) {
	for _, c := range []struct {
		kind int32
		b    string
		want string
	}{
		{cmapInt8, "\xff", "-1"}, {cmapUint8, "\xff", "255"}, {cmapInt16, "\xfe\xff", "-2"}, {cmapUint16, "\x01\x02", "513"},
		{cmapInt32, "\xff\xff\xff\xff", "-1"}, {cmapUint32, "\xff\xff\xff\xff", "4294967295"}, {cmapInt64, "\x00\x00\x00\x00\x00\x00\x00\x80", "-9223372036854775808"},
		{cmapUint64, "\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"}, {cmapFloat, "\x00\x00\x00\x3f", "0.5"},
		{cmapDouble, "\x00\x00\x00\x00\x00\x00\xe0\x3f", "0.5"}, {cmapString, "name\x00", "name"}, {cmapString, "", ""}, {12, "\x01", `"\x01"`},
	} {
		if got := valueOf(c.kind, []byte(c.b)).String(); got != c.want {
			t.Errorf("type %d %q: %q, want %q", c.kind, c.b, got, c.want)
		}
	}
}

// TestAbsent runs this program again where a library cannot be loaded.
func TestAbsent(t *testing.T) {
	const env = "VMLOCKD_TEST_ABSENT"
	if os.Getenv(env) != "" {
		_, err := Join(t.Context(), Host(), "g", Options{Background: true})
		if !errors.Is(err, ErrNoLibrary) || !strings.Contains(err.Error(), "apt-get install libcpg4") {
			t.Errorf("join: %v", err)
		}
		if _, err := NewCmap(Host()).Get(t.Context(), "totem.version"); !errors.Is(err, ErrNoLibrary) {
			t.Errorf("cmap: %v", err)
		}
		if _, err := Track(t.Context(), Host(), Options{}); !errors.Is(err, ErrNoLibrary) {
			t.Errorf("track: %v", err)
		}
		if err := Available(); !errors.Is(err, ErrNoLibrary) {
			t.Errorf("available: %v", err)
		}
		return
	}
	// A file that is no library stands before the real one in the loader's path.
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/libcpg.so.4", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestAbsent$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1", "LD_LIBRARY_PATH="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestAbsent") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCodes(t *testing.T) {
	if err := codeError(csOK); err != nil {
		t.Error(err)
	}
	for code, want := range map[int32]error{2: ErrNotRunning, 6: ErrTryAgain, 11: ErrAccess, 12: ErrNoKey, 14: ErrMember, 100: ErrAccess, 9: LibraryError(9)} {
		if err := codeError(code); !errors.Is(err, want) {
			t.Errorf("code %d: %v", code, err)
		}
	}
	if got := codeError(77).Error(); !strings.Contains(got, "77") {
		t.Error(got)
	}
}
