package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const profile = packaging + "apparmor/usr.sbin.vmlockd"

// peerRule is what libvirt's profiles of virtual machines need beside ours.
const peerRule = "signal (receive) set=(stop, cont, term, kill) peer=vmlockd,"

// TestAppArmorIsParsed has AppArmor's own parser read the profile, and what a site adds to those of its virtual machines.
// It is not given to a kernel.
func TestAppArmorIsParsed(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skipf("%v: Debian has it in apparmor; make deb-test installs it and parses the profile", err)
	}
	other := filepath.Join(t.TempDir(), "vm")
	if err := os.WriteFile(other, []byte("profile vm {\n"+peerRule+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{profile, other} {
		if out, err := exec.Command(parser, "--skip-kernel-load", "--skip-cache", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// TestAppArmorAllowsWhatTheUnitDoes: a capability of one that the other lacks is a mistake in either, and what must not
// happen unawares is a profile that is loaded, or one without the warning.
func TestAppArmorAllowsWhatTheUnitDoes(t *testing.T) {
	text := read(t, profile)
	var capabilities []string
	for _, m := range regexp.MustCompile(`(?m)^  capability (\w+),`).FindAllStringSubmatch(text, -1) {
		capabilities = append(capabilities, "CAP_"+strings.ToUpper(m[1]))
	}
	if unit := settings(t, packaging+"vmlockd.service")["CapabilityBoundingSet"]; !slices.Equal(capabilities, unit) {
		t.Errorf("the profile has %q and the unit %q", capabilities, unit)
	}
	for _, want := range []string{"profile vmlockd /usr/sbin/vmlockd flags=(complain", peerRule, "signal (send) set=(exists, stop, cont, term, kill),", "/** rwk,", "ptrace (read),"} {
		if !strings.Contains(text, want) {
			t.Errorf("the profile has no %q", want)
		}
	}
	if guide := read(t, "../../docs/install.md"); !strings.Contains(guide, peerRule) {
		t.Errorf("docs/install.md does not say %q", peerRule)
	}
	if build := read(t, "../../scripts/deb"); !strings.Contains(build, "usr/share/apparmor/extra-profiles "+strings.TrimPrefix(profile, "../../")) || strings.Contains(build, "etc/apparmor.d") {
		t.Error("scripts/deb puts the profile where it is loaded, or nowhere")
	}
}
