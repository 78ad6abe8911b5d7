// Package packaging_test holds together what the package installs and what the programs do. What needs a root file
// system of its own is in scripts/deb-test.
package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/daemon"
)

const packaging = "../../packaging/"

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// defaults are those of the system's daemon, whoever runs the test: internal/config has a test that the file tells them.
func defaults(t *testing.T) config.Config {
	t.Helper()
	var text strings.Builder
	for line := range strings.Lines(read(t, packaging+"vmlockd.toml")) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") {
			line = line[1:]
		}
		text.WriteString(line)
	}
	c, err := config.Parse("vmlockd.toml", []byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settings are those of a unit in a file.
func settings(t *testing.T, path string) map[string][]string {
	t.Helper()
	s := parseUnit(read(t, path))
	if s[""] != nil {
		t.Errorf("%s: %q are no settings", path, s[""])
	}
	return s
}

// parseUnit has the settings of a unit, by name; none of ours is there twice but those that systemd joins. Under "" is what is no
// setting.
func parseUnit(text string) map[string][]string {
	s := map[string][]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "[") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			key, value = "", line
		}
		s[key] = append(s[key], strings.Fields(value)...)
	}
	return s
}

func TestUnit(t *testing.T) {
	c, unit := defaults(t), settings(t, packaging+"vmlockd.service")
	one := func(key string) string {
		if len(unit[key]) != 1 {
			t.Fatalf("%s has %q", key, unit[key])
		}
		return unit[key][0]
	}
	for key, want := range map[string]string{
		"RuntimeDirectory":         strings.TrimPrefix(c.RunDir, "/run/"),
		"LogsDirectory":            strings.TrimPrefix(filepath.Dir(c.AuditLog), "/var/log/"),
		"ExecStart":                "/usr/sbin/vmlockd",
		"Type":                     "notify",
		"KillMode":                 "process",
		"OOMPolicy":                "continue",
		"RuntimeDirectoryPreserve": "yes",
		"Restart":                  "always",
		"StartLimitIntervalSec":    "0",
	} {
		if got := one(key); got != want {
			t.Errorf("%s=%s, and it should be %s", key, got, want)
		}
	}
	if n, err := strconv.Atoi(one("LimitNOFILE")); err != nil || n < 12*c.MaxClients {
		t.Errorf("LimitNOFILE=%d (%v) for %d clients with a process and ten disks each", n, err, c.MaxClients)
	}
	stop, err := time.ParseDuration(strings.Replace(one("TimeoutStopSec"), "min", "m", 1))
	if need := time.Duration(c.Guard.Grace+c.Guard.HoldOff) + time.Minute; err != nil || stop < need {
		t.Errorf("TimeoutStopSec=%v (%v), and stopping may take %v", stop, err, need)
	}
	// A restart in place may take as long as a start, and gives no sign of life meanwhile.
	if one("WatchdogSec") != one("TimeoutStartSec") {
		t.Errorf("WatchdogSec=%s and TimeoutStartSec=%s", one("WatchdogSec"), one("TimeoutStartSec"))
	}
	for key, want := range map[string][]string{
		"After":  {"corosync.service", "dlm.service"},
		"Before": {"libvirtd.service", "virtqemud.service", "machine.slice"},
	} {
		for _, w := range want {
			if !slices.Contains(unit[key], w) {
				t.Errorf("%s= does not name %s", key, w)
			}
		}
	}
	// What would hide disks or the DLM, or stop vmlockd with something else; the unit says why.
	for _, key := range []string{"Requires", "BindsTo", "PartOf", "Conflicts", "ProtectHome", "PrivateTmp", "PrivateDevices", "DeviceAllow", "DevicePolicy",
		"ProtectClock", "ProtectControlGroups", "ProtectProc", "ProcSubset", "PrivateIPC", "PrivateNetwork", "PrivateUsers", "MountFlags", "UMask", "SendSIGKILL"} {
		if v, ok := unit[key]; ok {
			t.Errorf("%s=%q must not be there", key, v)
		}
	}
	if one("ProtectSystem") != "full" {
		t.Error("ProtectSystem= hides disks, or protects nothing")
	}
}

// TestReloadRestartsInPlace: any other signal would be ignored, or end the daemon.
func TestReloadRestartsInPlace(t *testing.T) {
	reload := strings.Join(settings(t, packaging+"vmlockd.service")["ExecReload"], " ")
	m := regexp.MustCompile(`\bkill -(\w+) \$MAINPID\b`).FindStringSubmatch(reload)
	if m == nil {
		t.Fatalf("ExecReload=%s sends no signal", reload)
	}
	if s := unix.SignalNum("SIG" + m[1]); s == 0 || !slices.Contains(daemon.RestartSignals, os.Signal(s)) {
		t.Errorf("ExecReload=%s sends %v, and vmlockd restarts in place for %v", reload, s, daemon.RestartSignals)
	}
}

// TestUnitExplainsCapabilities: each capability has its line, and none is explained that is not given.
func TestUnitExplainsCapabilities(t *testing.T) {
	path := packaging + "vmlockd.service"
	var explained []string
	for _, m := range regexp.MustCompile(`(?m)^# (CAP_\w+) +\S`).FindAllStringSubmatch(read(t, path), -1) {
		explained = append(explained, m[1])
	}
	if given := settings(t, path)["CapabilityBoundingSet"]; len(given) == 0 || !slices.Equal(given, explained) {
		t.Errorf("given are %q, explained are %q", given, explained)
	}
}

// TestUnitHasWhatReadmeSays: the unit of the package is not less than the one that README.md explains.
func TestUnitHasWhatReadmeSays(t *testing.T) {
	_, needs, found := strings.Cut(read(t, "../../README.md"), "\n* The unit needs ")
	needs, _, _ = strings.Cut(needs, "\n* ")
	unit := settings(t, packaging+"vmlockd.service")
	n := 0
	for i, word := range strings.Split(needs, "`") {
		if key, value, ok := strings.Cut(word, "="); ok && i%2 == 1 {
			n++
			if key == "Restart" { // always is more than on-failure
				continue
			}
			if len(unit[key]) == 0 || value != "" && !slices.Contains(unit[key], value) {
				t.Errorf("the unit has %s=%q, and README.md says that it needs %s", key, unit[key], word)
			}
		}
	}
	if !found || n < 5 {
		t.Errorf("README.md names %d settings", n)
	}
}

// TestVirtlockdStaysAway: virtlockd's units look at the link that enabling ours makes.
func TestVirtlockdStaysAway(t *testing.T) {
	wanted := settings(t, packaging+"vmlockd.service")["WantedBy"]
	for _, unit := range []string{"virtlockd.service", "virtlockd.socket", "virtlockd-admin.socket"} {
		on := settings(t, packaging+"dropins/"+unit+".conf")["ConditionPathExists"]
		if len(on) != 1 {
			t.Fatalf("%s has the conditions %q", unit, on)
		}
		target, ok := strings.CutPrefix(on[0], "!/etc/systemd/system/")
		target, ok2 := strings.CutSuffix(target, ".wants/vmlockd.service")
		if !ok || !ok2 || !slices.Contains(wanted, target) {
			t.Errorf("%s looks at %s, and vmlockd is wanted by %q", unit, on[0], wanted)
		}
	}
	if !slices.Contains(wanted, "libvirtd.service") {
		t.Error("starting libvirt does not start vmlockd")
	}
}

// TestRestartedUnderPacemaker: Pacemaker's Restart=no for what it has started is in 50-pacemaker.conf, and of all drop-ins that whose name
// sorts last is right.
func TestRestartedUnderPacemaker(t *testing.T) {
	unit, dropin := settings(t, packaging+"vmlockd.service"), settings(t, packaging+"dropins/vmlockd.service.conf")
	if !slices.Equal(dropin["Restart"], unit["Restart"]) || len(dropin) != 1 {
		t.Errorf("the drop-in has %q, and the unit Restart=%q", dropin, unit["Restart"])
	}
	name := regexp.MustCompile(`\.d/(50-\w+\.conf)"`).FindStringSubmatch(read(t, "../../scripts/deb"))
	if name == nil || name[1] <= "50-pacemaker.conf" {
		t.Errorf("scripts/deb names it %q, which does not come after Pacemaker's", name)
	}
}

// TestScripts: the maintainer scripts have the paths that the programs have, and are scripts.
func TestScripts(t *testing.T) {
	c := defaults(t)
	for file, lines := range map[string][]string{
		"replace-virtlockd": {"socket=" + c.Socket, "unit=vmlockd.service"},
		"prerm":             {"run=" + c.RunDir, "if [ -S $run/control.sock ]; then", `for journal in $run/journal-cluster-*; do`},
		"postinst":          {"program=/usr/sbin/vmlockd"},
		"postrm":            {"rm -rf " + filepath.Dir(c.AuditLog)},
	} {
		path := packaging + "deb/" + file
		text := read(t, path)
		for _, l := range lines {
			if !slices.ContainsFunc(strings.Split(text, "\n"), func(s string) bool { return strings.TrimSpace(s) == l }) {
				t.Errorf("%s has no line %q", file, l)
			}
		}
		if out, err := exec.Command("sh", "-n", path).CombinedOutput(); err != nil {
			t.Errorf("sh -n %s: %v\n%s", file, err, out)
		}
		if strings.Contains(text, "rm -rf "+c.RunDir) {
			t.Errorf("%s removes what may explain held locks", file)
		}
	}
	if c.ControlSocket != c.RunDir+"/control.sock" || c.HolderSocket() != c.RunDir+"/holder.sock" {
		t.Errorf("prerm looks for other sockets than %s and %s", c.ControlSocket, c.HolderSocket())
	}
}

// TestManPage: the page of vmlockd has its options, which are where it defines them.
func TestManPage(t *testing.T) {
	page := strings.ReplaceAll(read(t, packaging+"vmlockd.8"), `\-`, "-")
	options := regexp.MustCompile(`Flags\(\)\.\w+\((?:&[\w.]+, )?"([\w-]+)", (?:"(\w)")?`).FindAllStringSubmatch(read(t, "../../cmd/vmlockd/main.go"), -1)
	if len(options) < 4 {
		t.Fatalf("only %q were found", options)
	}
	for _, o := range options {
		if !strings.Contains(page, "--"+o[1]) || o[2] != "" && !strings.Contains(page, "-"+o[2]+" ") {
			t.Errorf("the page lacks --%s -%s", o[1], o[2])
		}
	}
}

// TestInstallGuide: docs/install.md has the corosync.conf of README.md, which a test has corosync read.
func TestInstallGuide(t *testing.T) {
	conf := func(path string) (lines []string) {
		in := false
		for line := range strings.Lines(read(t, path)) {
			line = strings.TrimSpace(line)
			in = in || line == "totem {"
			if in && (line == "" || strings.HasPrefix(line, "`") || regexp.MustCompile(`^\d+\. `).MatchString(line)) {
				break
			}
			if in {
				lines = append(lines, line)
			}
		}
		return lines
	}
	ours, tested := conf("../../docs/install.md"), conf("../../README.md")
	if len(ours) < 20 || !slices.Equal(ours, tested) {
		t.Errorf("docs/install.md has %q\nand README.md %q", ours, tested)
	}
}

// TestCommandsInDocs: what pages tell to type are commands that there are, with options that they have.
func TestCommandsInDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?m)`[^`\n]+`|^    .*$")
	call := regexp.MustCompile(`\bvmlockctl( [^|;&#` + "`" + `\n]*)`)
	n := 0
	for _, file := range append(pages, "../../README.md") {
		for _, text := range code.FindAllString(read(t, file), -1) {
			for _, m := range call.FindAllStringSubmatch(text, -1) {
				words := strings.Fields(m[1])
				if len(words) == 0 || !regexp.MustCompile(`^[a-z][a-z-]+$`).MatchString(words[0]) {
					continue
				}
				n++
				b, err := os.ReadFile("../../docs/man/vmlockctl-" + words[0] + ".8")
				if err != nil && words[0] != "completion" {
					t.Errorf("%s: %q: there is no such command: %v", file, m[0], err)
					continue
				}
				page := strings.ReplaceAll(string(b), `\-`, "-")
				for _, w := range words[1:] {
					if w == "--" {
						break
					}
					w = regexp.MustCompile(`^--[a-z0-9-]+`).FindString(w)
					if w != "" && !regexp.MustCompile(regexp.QuoteMeta(w)+`([^a-z0-9-]|$)`).MatchString(page) {
						t.Errorf("%s: %q: there is no option %s", file, m[0], w)
					}
				}
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d commands were found", n)
	}
}
