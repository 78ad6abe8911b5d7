package domstatus

import (
	"testing"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestPlace: of these libvirt asks a lock for what is on this host (virDomainLockManagerAddImage). What a daemon makes of
// notes that libvirt wrote is tested in internal/daemon.
func TestPlace(t *testing.T) {
	for source, want := range map[string]string{
		"<disk type='file'><source file='/a'/></disk>":                  "/a ",
		"<disk type='block'><source dev='/dev/a'/></disk>":              "/dev/a ",
		"<disk type='dir'><source dir='/a'/></disk>":                    "/a ",
		"<disk type='volume'><source pool='p' volume='v'/></disk>":      " p/v",
		"<disk type='volume'><source volume='v'/></disk>":               " ",
		"<disk type='network'><source protocol='rbd' name='a'/></disk>": " ",
		"<disk type='file' device='floppy'/>":                           " ",
	} {
		s, err := ParseStatus([]byte("<domstatus><domain><devices>" + source + "</devices></domain></domstatus>"))
		if err != nil || len(s.Domain.Disks) != 1 {
			t.Fatalf("%s: %v, %v", source, s, err)
		}
		if path, volume := s.Domain.Disks[0].Place(); path+" "+volume != want {
			t.Errorf("%s: %q, %q, want %q", source, path, volume, want)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add("<domstatus state='running' pid='1'><job type='none' async='dump'/><domain><devices><disk type='file'><source file='/x'/></disk></devices></domain></domstatus>", "", "/x")
	f.Add("<domstatus><domain><devices><lease><lockspace>s</lockspace><key>k</key><target path='/t'/></lease></devices></domain></domstatus>", "/t/s", "k")
	f.Fuzz(func(t *testing.T, text, lockspace, name string) {
		testenv.Bounded(t, 1000, len(text)+len(lockspace)+len(name), func() {
			s, err := ParseStatus([]byte(text))
			if err != nil {
				return
			}
			if uses, unsure := s.Domain.Uses(lockspace, name); uses && unsure {
				t.Error("it is sure and is not")
			} else if uses && len(s.Domain.Disks)+len(s.Domain.Leases) == 0 {
				t.Error("it uses what it does not have")
			}
		})
	})
}
