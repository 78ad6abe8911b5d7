package doctor

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

const pacemakerDropIn = "/etc/systemd/system/vmlockd.service.d/pacemaker.conf"

// pacemakersCIB is what Pacemaker 2.1.5 and crmsh 4.4.1 make of the lines for dlm and vmlockd in docs/fencing.md.
const pacemakersCIB = `<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="2" num_updates="0" admin_epoch="0">
  <configuration>
    <crm_config/>
    <nodes/>
    <resources>
      <group id="locks">
        <primitive id="dlm" class="ocf" provider="pacemaker" type="controld">
          <operations>
            <op name="start" timeout="90s" interval="0" id="dlm-start-0"/>
            <op name="stop" timeout="100s" interval="0" id="dlm-stop-0"/>
            <op name="monitor" interval="60s" timeout="60s" on-fail="fence" id="dlm-monitor-60s"/>
          </operations>
        </primitive>
        <primitive id="vmlockd" class="systemd" type="vmlockd">
          <operations>
            <op name="start" timeout="200s" interval="0" id="vmlockd-start-0"/>
            <op name="stop" timeout="200s" interval="0" id="vmlockd-stop-0"/>
            <op name="monitor" interval="60s" timeout="60s" on-fail="ignore" id="vmlockd-monitor-60s"/>
          </operations>
        </primitive>
      </group>
    </resources>
    <constraints/>
  </configuration>
  <status/>
</cib>
`

// pacemaker has it start dlm_controld and vmlockd.
func pacemaker(w *world) {
	w.write("/proc/901/comm", "pacemakerd\n")
	w.write("/lib/systemd/system/pacemaker.service", "[Service]\nExecStart=/usr/sbin/pacemakerd\n")
	w.write(cibPath, pacemakersCIB)
	w.remove("/etc/systemd/system/multi-user.target.wants/dlm.service")
}

var pacemakerFaults = []fault{
	{"systemd does not wait for pacemaker", false, pacemaker, []string{idUnitPacemaker}, "/etc/systemd/system/vmlockd.service", "two minutes", pacemakerDropIn},
	{"systemd waits for something else", false, func(w *world) {
		pacemaker(w)
		w.write(pacemakerDropIn, "[Unit]\nConditionPathExists=!/run/dlm_controld/dlm_controld.pid\n[Service]\nConditionPathExists=/run/dlm_controld/dlm_controld.pid\n")
	}, []string{idUnitPacemaker}, "", "", ""},
	{"a later drop-in takes the condition back", false, func(w *world) {
		pacemaker(w)
		w.write(pacemakerDropIn, "[Unit]\nConditionPathExists=/run/dlm_controld/dlm_controld.pid\n")
		w.write("/etc/systemd/system/vmlockd.service.d/zz.conf", "[Unit]\nConditionPathExists=\n")
	}, []string{idUnitPacemaker}, "", "", ""},
	{"pacemaker does not run now", false, func(w *world) {
		pacemaker(w)
		w.remove("/proc/901")
		w.link("/etc/systemd/system/multi-user.target.wants/pacemaker.service", "/lib/systemd/system/pacemaker.service")
	}, []string{idUnitPacemaker}, "", "", ""},
	{"pacemaker was here once", false, func(w *world) {
		pacemaker(w)
		w.remove("/proc/901")
	}, []string{idClusterBoot}, "dlm.service", "", ""},
	{"pacemaker starts vmlockd, and systemd does not", false, func(w *world) {
		pacemaker(w)
		w.remove("/etc/systemd/system/multi-user.target.wants/vmlockd.service")
	}, []string{idUnitBoot}, "", "", ""},
	{"pacemaker.service cannot be read", false, func(w *world) {
		w.write("/lib/systemd/system/pacemaker.service", "")
		w.at("/lib/systemd/system/pacemaker.service").err = errTest
		w.remove("/etc/systemd/system/multi-user.target.wants/dlm.service")
	}, []string{idUnchecked, idUnchecked}, "pacemaker.service", "started at boot", ""},
	{"dlm.service is masked", false, func(w *world) {
		pacemaker(w)
		w.link("/etc/systemd/system/dlm.service", "/dev/null")
		w.link("/etc/systemd/system/multi-user.target.wants/dlm.service", "/lib/systemd/system/dlm.service")
	}, []string{idUnitPacemaker}, "", "", ""},
	{"pacemaker has both by templates", false, func(w *world) {
		pacemaker(w)
		w.replace(cibPath, "<resources>", `<resources><template id="a" class="ocf" provider="pacemaker" type="controld"/><template id="b" class="systemd" type="vmlockd.service"/>`)
		w.replace(cibPath, `class="ocf" provider="pacemaker" type="controld">`, `template="a">`)
		w.replace(cibPath, `class="systemd" type="vmlockd">`, `template="b">`)
	}, []string{idUnitPacemaker}, "", "", ""},
	{"pacemaker's configuration may not be read", false, func(w *world) {
		pacemaker(w)
		w.at(cibPath).err = fs.ErrPermission
	}, []string{idUnchecked}, cibPath, "whether Pacemaker", "as root"},
	{"pacemaker's configuration is cut off", false, func(w *world) {
		pacemaker(w)
		w.write(cibPath, pacemakersCIB[:len(pacemakersCIB)-100])
	}, []string{idUnchecked}, cibPath, "XML syntax error", ""},
	{"pacemaker's configuration is another file", false, func(w *world) {
		pacemaker(w)
		w.write(cibPath, "")
	}, []string{idUnchecked}, cibPath, "no element cib", ""},
	{"dlm.service cannot be read", false, func(w *world) {
		pacemaker(w)
		w.at("/lib/systemd/system/dlm.service").err = errTest
	}, []string{idUnchecked}, "dlm.service", "whether Pacemaker", ""},
}

// TestPacemakerLocal: with backend "local" vmlockd starts without dlm_controld.
func TestPacemakerLocal(t *testing.T) {
	w := localWorld(t)
	w.write("/proc/901/comm", "pacemakerd\n")
	w.write(cibPath, pacemakersCIB)
	for _, f := range w.examine(t) {
		t.Errorf("%+v", f)
	}
}

// TestPacemakerRemedy: whoever does what the remedy says has what docs/fencing.md says, and no finding any more.
func TestPacemakerRemedy(t *testing.T) {
	page, err := os.ReadFile("../../docs/fencing.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("`(/etc/systemd/system/vmlockd\\.service\\.d/[a-z]+\\.conf)`[^\n]*\n\n((?:    [^\n]+\n)+)").FindStringSubmatch(string(page))
	if m == nil {
		t.Fatal("docs/fencing.md has no such file")
	}
	w := clusterWorld(t)
	pacemaker(w)
	list := w.examine(t)
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	text := strings.ReplaceAll(m[2], "    ", "")
	for part := range strings.Lines(m[1] + "\n" + text) {
		if part = strings.TrimSpace(part); !strings.Contains(list[0].Remedy, part) {
			t.Errorf("the remedy does not have %q of docs/fencing.md: %s", part, list[0].Remedy)
		}
	}
	w.write(m[1], text)
	for _, f := range w.examine(t) {
		t.Errorf("after the remedy: %+v", f)
	}
}
