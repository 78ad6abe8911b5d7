package identity

import (
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestNBDExport(t *testing.T) {
	for _, tc := range []struct{ cmdline, want string }{
		{"nbd-client 192.0.2.9 10810 /dev/nbd1 -N db", "192.0.2.9:10810/db"},
		{"/usr/sbin/nbd-client store.example /dev/nbd1", "store.example:10809/"},
		{"nbd-client -L -N db store.example /dev/nbd1", "store.example:10809/db"},
		{"nbd-client store.example /dev/nbd1 -b 4096 -nonetlink -name db", "store.example:10809/db"},
		{"nbd-client store.example /dev/nbd1 --name=db --timeout 5", "store.example:10809/db"},
		{"nbd-client -persist -C 4 store.example /dev/nbd1 -N db", "store.example:10809/db"},
		// The name is written behind something that is not known, or with another device.
		{"nbd-client store.example /dev/nbd1 -unheard -N db", ""},
		{"nbd-client store.example /dev/nbd11 -N db", ""},
		{"nbd-client store.example /dev/nbd1 -N", ""},
		{"nbd-client store.example /dev/nbd1 -L=yes -N db", ""},
		{"nbd-client -unix /run/nbd.sock /dev/nbd1 -N db", ""},
		{"nbd-client /run/nbd.sock /dev/nbd1 -N db", ""},
		{"nbd-client -c /dev/nbd1", ""},
		{"nbd-client store.example port /dev/nbd1", ""},
		{"nbd-client a b c /dev/nbd1", ""},
		{"nbd-client", ""},
		{"notnbd-client store.example /dev/nbd1", ""},
		{"qemu-nbd -c /dev/nbd1 web.img", ""},
		{"", ""},
	} {
		cmdline := strings.ReplaceAll(tc.cmdline, " ", "\x00") + "\x00"
		if got := nbdExport([]byte(cmdline), "/dev/nbd1"); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.cmdline, got, tc.want)
		}
	}
}

func FuzzNBDExport(f *testing.F) {
	f.Add([]byte("nbd-client\x00store.example\x00/dev/nbd1\x00-N\x00db\x00"))
	f.Fuzz(func(t *testing.T, cmdline []byte) {
		var got string
		testenv.Bounded(t, 20, len(cmdline), func() { got = nbdExport(cmdline, "/dev/nbd1") })
		if got != "" && (!strings.Contains(string(cmdline), "/dev/nbd1") || len(got) > len(cmdline)+len(":10809/")) {
			t.Errorf("%q", got)
		}
	})
}
