package identity_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// qcow2 is an empty overlay of a raw image that all nodes have, as qemu-img makes it
// (docs/interop/qcow2.txt of QEMU): a header with the path of what is below, a table of
// reference counts with one block, and a table of tables of clusters, in one cluster
// each. The size is that of the lab's guests.
func qcow2(below string) []byte {
	const (
		clusterBits = 16
		cluster     = 1 << clusterBits
		formatMagic = 0xe2792aca // of the header extension that names the format of what is below
	)
	img := make([]byte, 4*cluster)
	be := binary.BigEndian
	const header, extensions = 104, 104 + 8 + 8 + 8
	copy(img, "QFI\xfb")
	be.PutUint32(img[4:], 3)
	be.PutUint64(img[8:], extensions)
	be.PutUint32(img[16:], uint32(len(below)))
	be.PutUint32(img[20:], clusterBits)
	be.PutUint64(img[24:], uint64(len(lab.IdleGuest())))
	be.PutUint32(img[36:], 1)         // entries in the table of tables
	be.PutUint64(img[40:], 3*cluster) // which is here
	be.PutUint64(img[48:], 1*cluster) // the table of reference counts
	be.PutUint32(img[56:], 1)         // in clusters
	be.PutUint32(img[96:], 4)         // 2^4 bits for each count
	be.PutUint32(img[100:], header)
	be.PutUint32(img[header:], formatMagic)
	be.PutUint32(img[header+4:], uint32(len("raw")))
	copy(img[header+8:], "raw")
	// Then an extension of type 0, which ends them.
	copy(img[extensions:], below)
	be.PutUint64(img[1*cluster:], 2*cluster)
	for i := range 4 {
		be.PutUint16(img[2*cluster+2*i:], 1)
	}
	return img
}

// share makes a file in the folder that all nodes have, and returns its path there.
func (s *suite) share(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Shared(), name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return lab.SharedDir + "/" + name
}
