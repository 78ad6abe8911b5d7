package identity

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestAllKernelsTellOneCephCluster makes f_fsid as ceph_statfs does, before and since
// Linux 5.16, for any cluster.
func TestAllKernelsTellOneCephCluster(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		uuid := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid")
		number := rapid.OneOf(rapid.Just(uint32(cephNoNumber)), rapid.Uint32Range(0, cephMaxNumber)).Draw(t, "number")
		first, second := binary.LittleEndian.Uint64(uuid), binary.LittleEndian.Uint64(uuid[8:])
		before := first ^ second
		since := uint64(number)<<32 | (before^before>>32)&(1<<32-1)

		want, err := foldUUID(hex.EncodeToString(uuid))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := cephStatfs(since); err != nil || got != want {
			t.Errorf("since 5.16: %08x, %v, want %08x", got, err, want)
		}
		got, err := cephStatfs(before)
		switch high := before >> 32; {
		case high <= cephMaxNumber || high == cephNoNumber: // one cluster in 4 million
		case high < cephNoMore:
			if !errors.Is(err, ErrContradiction) {
				t.Errorf("%016x may be either, and is %08x, %v", before, got, err)
			}
		default:
			if err != nil || got != want {
				t.Errorf("before 5.16: %08x, %v, want %08x", got, err, want)
			}
		}
	})
}

func TestCephStatfsThatMayBeEither(t *testing.T) {
	for high, either := range map[uint64]bool{0: false, 1: false, 1023: false, 1024: true, 1<<20 - 1: true, 1 << 20: false, 1<<32 - 1: false} {
		if _, err := cephStatfs(high<<32 | 0x12345678); errors.Is(err, ErrContradiction) != either {
			t.Errorf("%#x in the upper half: %v", high, err)
		}
	}
}

func FuzzFoldUUID(f *testing.F) {
	f.Add("1b7c5a1e-0f0c-4c4d-9a0a-3c8b7c2f1e11")
	f.Add("1b7c5a1e")
	f.Fuzz(func(t *testing.T, text string) {
		var n uint32
		var err error
		testenv.Bounded(t, 10, len(text), func() { n, err = foldUUID(text) })
		if (err == nil) != (len(hexDigits(text)) == 32) || err != nil && n != 0 {
			t.Errorf("%q: %08x, %v", text, n, err)
		}
	})
}

// unreadable is a host whose kernel refuses to tell an attribute.
type unreadable struct{ *world }

func (unreadable) xattr(string, string) (string, error) { return "", unix.EACCES }

// TestACephClusterThatIsNotTold: statfs(2) is not asked instead, as its answer may be
// meant in two ways.
func TestACephClusterThatIsNotTold(t *testing.T) {
	r := newResolver(unreadable{loadWorld(t, "testdata/shared.txtar")}, Options{})
	if id, err := r.Identify(context.Background(), "/cephnew/web.img"); !errors.Is(err, unix.EACCES) || id.Name != "" {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestXattrOfThisHost(t *testing.T) {
	// No file here is on CephFS.
	if value, err := host.xattr(t.TempDir(), "ceph.cluster_fsid"); err != nil || value != "" {
		t.Errorf("%q, %v", value, err)
	}
	if value, err := host.xattr(t.TempDir()+"/missing", "ceph.cluster_fsid"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of nothing: %q, %v", value, err)
	}
}
