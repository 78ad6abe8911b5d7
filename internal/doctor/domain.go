package doctor

import (
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/vmlockd/vmlockd/internal/domstatus"
)

// domain is a virtual machine, running or defined.
type domain struct {
	file    string
	name    string
	uuid    string
	pid     int    // of QEMU; 0 for a definition
	state   string // of a running one, such as "running" or "paused"
	running bool   // it was read from the run-time state
	disks   []disk
}

func (d domain) String() string { return fmt.Sprintf("virtual machine %s", d.name) }

// disk is a writable disk on this host's storage: what libvirt asks a lock for.
type disk struct {
	target    string
	path      string // "" if it is a volume whose place is not known
	volume    string // pool/volume
	format    string // "" means that libvirt takes raw
	cache     string // "" means libvirt's choice, which is none for shareable disks
	shareable bool
	// below are the images on which it lies, as an overlay (a qcow2 file, say, with a
	// backing file), the next one first. libvirt tells them of a running one.
	below []string
}

// parseStatus reads the run-time state of a running virtual machine.
func parseStatus(text []byte) (domain, error) {
	s, err := domstatus.ParseStatus(text)
	if err != nil {
		return domain{}, err
	}
	d, err := domainOf(s.Domain)
	d.running, d.pid, d.state = true, s.PID, s.State
	return d, err
}

// parseDefinition reads the definition of a virtual machine.
func parseDefinition(text []byte) (domain, error) {
	var s struct {
		XMLName xml.Name `xml:"domain"`
		domstatus.Domain
	}
	if err := xml.Unmarshal(text, &s); err != nil {
		return domain{}, err
	}
	return domainOf(s.Domain)
}

func domainOf(x domstatus.Domain) (domain, error) {
	d := domain{name: strings.TrimSpace(x.Name), uuid: strings.TrimSpace(x.UUID)}
	if d.name == "" {
		return d, fmt.Errorf("the virtual machine has no name")
	}
	for _, in := range x.Disks {
		if !in.Written() {
			continue
		}
		k := disk{
			target: in.Target.Dev, format: in.Driver.Type, cache: in.Driver.Cache, shareable: in.Shareable != nil,
		}
		k.path, k.volume = in.Place()
		for b := in.Below; b != nil; b = b.Below {
			if p := b.Source.File + b.Source.Dev; p != "" { // it has one of them, or is elsewhere
				k.below = append(k.below, p)
			}
		}
		if k.path != "" || k.volume != "" {
			d.disks = append(d.disks, k)
		}
	}
	return d, nil
}

// xmlPool is as much of a storage pool as tells where its volumes are.
type xmlPool struct {
	Type string `xml:"type,attr"`
	Path string `xml:"target>path"`
}

// volumePath finds the path of a volume of a pool that is a directory or a volume
// group; ok is false if it is another kind, or not known.
func volumePath(s System, volume string) (path string, ok bool) {
	pool, name, _ := strings.Cut(volume, "/")
	if pool == "" || name == "" || strings.ContainsAny(pool+name, "/\x00") {
		return "", false
	}
	for _, dir := range []string{"/run/libvirt/storage", "/etc/libvirt/storage"} {
		text, err := s.ReadFile(sysPath(dir, pool+".xml"), maxConf)
		if err != nil {
			continue
		}
		var p struct {
			xmlPool
			Pool xmlPool `xml:"pool"` // in the run-time state it is within <poolstate>
		}
		if xml.Unmarshal(text, &p) != nil {
			return "", false
		}
		in := p.xmlPool
		if in.Path == "" {
			in = p.Pool
		}
		switch in.Type {
		case "dir", "fs", "netfs", "logical":
			if strings.HasPrefix(in.Path, "/") {
				return sysPath(in.Path, name), true
			}
		}
		return "", false
	}
	return "", false
}
