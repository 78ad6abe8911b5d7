package doctor

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// cibPath is where Pacemaker has its configuration on each host (CRM_CONFIG_DIR in its configure.ac). Only root and the group haclient may read it.
	cibPath = "/var/lib/pacemaker/cib/cib.xml"
	maxCIB  = 8 << 20 // bytes of it

	// controldPID is there from the start of dlm_controld until it ends in good order.
	controldPID = "/run/dlm_controld/dlm_controld.pid"
)

// agentsOf lists the agents of all resources and templates in a configuration of Pacemaker, written like ocf:pacemaker:controld.
func agentsOf(cib []byte) (map[string]bool, error) {
	list, is := map[string]bool{}, false
	d := xml.NewDecoder(bytes.NewReader(cib))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		is = is || e.Name.Local == "cib"
		if e.Name.Local != "primitive" && e.Name.Local != "template" {
			continue
		}
		has := map[string]string{}
		for _, a := range e.Attr {
			has[a.Name.Local] = a.Value
		}
		agent := has["class"]
		if p := has["provider"]; p != "" {
			agent += ":" + p
		}
		list[agent+":"+has["type"]] = true
	}
	if !is {
		return nil, errors.New("it has no element cib")
	}
	return list, nil
}

// pacemakerUnit is for a unit u of vmlockd that is enabled. Where Pacemaker starts dlm_controld, and then vmlockd through systemd, a unit that
// systemd tries from boot on, and again and again until there is a dlm_controld, is neither there nor not there for Pacemaker, which waits
// for it. docs/fencing.md has the condition that keeps systemd from that.
func (x *exam) pacemakerUnit(name string, u unit) {
	if slices.ContainsFunc(u.values["Unit.ConditionPathExists"], func(s setting) bool { return strings.TrimPrefix(s.text, "/var") == controldPID }) {
		return
	}
	for _, question := range []struct {
		where string
		ask   func() (bool, error)
	}{
		{"pacemaker.service", x.pacemakerHere},
		{"dlm.service", x.controldNotAtBoot},
		{cibPath, func() (bool, error) { return x.pacemakerHas(name) }},
	} {
		yes, err := question.ask()
		if err != nil {
			x.unchecked(question.where, err, "whether Pacemaker starts dlm_controld and vmlockd")
		}
		if !yes {
			return
		}
	}
	x.find(idUnitPacemaker, u.path,
		fmt.Sprintf("on all hosts the lines [Unit] and ConditionPathExists=%s in /etc/systemd/system/%s.d/pacemaker.conf, then systemctl daemon-reload", controldPID, name),
		"systemd starts %s at boot, before Pacemaker has started dlm_controld, and again and again until then: Pacemaker cannot tell meanwhile whether it runs, waits two minutes for that on each host, and starts nothing", name)
}

// pacemakerHere says whether Pacemaker runs, or is started at boot.
func (x *exam) pacemakerHere() (bool, error) {
	if len(x.called("pacemakerd")) > 0 {
		return true, nil
	}
	return x.startedAtBoot("pacemaker.service")
}

// controldNotAtBoot says whether systemd leaves dlm_controld to others. Otherwise it is there before vmlockd, which comes after it.
func (x *exam) controldNotAtBoot() (bool, error) {
	on, err := x.startedAtBoot("dlm.service")
	return !on && err == nil, err
}

func (x *exam) startedAtBoot(name string) (bool, error) {
	u, err := readUnit(x.System, name)
	if err != nil || u.path == "" || u.masked {
		return false, err
	}
	return enabled(x.System, name)
}

// pacemakerHas says whether both dlm_controld and that unit are resources of Pacemaker. One that was never configured has no file.
func (x *exam) pacemakerHas(unit string) (bool, error) {
	text, err := x.System.ReadFile(cibPath, maxCIB)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	list, err := agentsOf(text)
	return list["ocf:pacemaker:controld"] && (list["systemd:"+strings.TrimSuffix(unit, ".service")] || list["systemd:"+unit]), err
}
