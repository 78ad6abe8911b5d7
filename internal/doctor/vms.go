package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/domstatus"
)

const (
	runningDir = "/run/libvirt/qemu"
	definedDir = "/etc/libvirt/qemu"
	// maxDisks bounds, over all virtual machines, what is compared.
	maxDisks = 1 << 20
)

// virtualMachines compares disks with the locks that are held for them.
func (x *exam) virtualMachines() {
	running := x.domains(runningDir, parseStatus)
	running = slices.DeleteFunc(running, func(d domain) bool {
		return !exists(x.System, fmt.Sprintf("/proc/%d", d.pid)) // it has just ended
	})
	defined := x.domains(definedDir, parseDefinition)
	x.diskTwice(running)
	x.belowWritten(running)
	x.locked(running)
	x.shareable(running, defined)
	if x.backend == config.BackendCluster {
		x.identities(running, defined)
		x.unstable(running, defined)
	}
}

// domains reads the virtual machines of a directory.
func (x *exam) domains(dir string, parse func([]byte) (domain, error)) (all []domain) {
	names, err := list(x.System, dir)
	if err != nil {
		x.unchecked(dir, err, "virtual machines")
		return nil
	}
	disks := 0
	for _, n := range names {
		if !strings.HasSuffix(n, ".xml") {
			continue
		}
		file := sysPath(dir, n)
		text, err := x.System.ReadFile(file, maxDomain)
		if absent(err) {
			continue // it has just ended
		}
		var d domain
		if err == nil {
			d, err = parse(text)
		}
		if err != nil {
			x.unchecked(file, err, "the disks of a virtual machine")
			continue
		}
		d.file = file
		for i := range d.disks {
			if k := &d.disks[i]; k.path == "" {
				if p, ok := volumePath(x.System, k.volume); ok {
					k.path = p
				} else if d.running && d.state == "running" {
					x.unchecked(file, fmt.Errorf("the path of volume %s is not known here", k.volume), "whether disk "+k.target+" is locked")
				}
			}
		}
		d.disks = slices.DeleteFunc(d.disks, func(k disk) bool { return k.path == "" })
		if disks += len(d.disks); disks > maxDisks {
			x.unchecked(dir, fmt.Errorf("there are more than %d disks", maxDisks), "all virtual machines")
			return all
		}
		all = append(all, d)
	}
	return all
}

// locked looks for disks of running virtual machines that are not locked as they
// should be. What looks wrong is looked at twice: it may have started, ended or
// been migrated between two looks.
func (x *exam) locked(running []domain) {
	if x.silent != nil {
		if slices.ContainsFunc(running, func(d domain) bool { return len(d.disks) > 0 }) {
			x.unchecked(runningDir, x.silent, "whether the disks of running virtual machines are locked")
		}
		return
	}
	type wrong struct {
		pid       int
		path, why string
	}
	look := func(holders []Holder, report func(d domain, k disk, why string)) map[wrong]bool {
		byPID := map[int][]Holder{}
		for _, h := range holders {
			if h.Here {
				byPID[h.PID] = append(byPID[h.PID], h)
			}
		}
		found := map[wrong]bool{}
		for _, d := range running {
			if d.state != "running" {
				continue // libvirt gives locks back while a virtual machine is suspended
			}
			for _, k := range d.disks {
				if why := x.lockOf(k, byPID[d.pid]); why != "" {
					found[wrong{d.pid, k.path, why}] = true
					report(d, k, why)
				}
			}
		}
		return found
	}
	first := look(x.daemon.Holders, func(domain, disk, string) {})
	if len(first) == 0 {
		return
	}
	again, err := x.Daemon(x.ctx)
	if err != nil {
		x.unchecked(runningDir, err, "whether the disks of running virtual machines are locked")
		return
	}
	running = slices.DeleteFunc(running, func(d domain) bool {
		text, err := x.System.ReadFile(d.file, maxDomain)
		if err != nil {
			return true
		}
		now, err := parseStatus(text)
		return err != nil || now.pid != d.pid || now.state != d.state || !exists(x.System, fmt.Sprintf("/proc/%d", d.pid))
	})
	look(again.Holders, func(d domain, k disk, why string) {
		if !first[wrong{d.pid, k.path, why}] {
			return
		}
		where := fmt.Sprintf("%s, disk %s", d, k.target)
		switch why {
		case notLocked:
			x.find(idUnlocked, where, fmt.Sprintf("virsh suspend %s && virsh resume %s: libvirt then asks for its locks, and leaves it suspended if another has them", d.name, d.name),
				"it runs as process %d and writes %s, which is not locked for it: another virtual machine can get that disk", d.pid, k.path)
		default:
			x.find(idLockMode, where, fmt.Sprintf("virsh edit %s, then shut it down and start it again", d.name), "%s is %s", k.path, why)
		}
	})
}

const notLocked = "not locked"

// lockOf says what is wrong with the lock of a disk, among those of its virtual
// machine; "" if nothing is.
func (x *exam) lockOf(k disk, held []Holder) string {
	hashed := domstatus.Hashed(k.path)
	i := slices.IndexFunc(held, func(h Holder) bool {
		// libvirt may have been configured otherwise when it was started, so each way
		// to name a disk is good.
		return h.Resource == k.path || h.Resource == hashed
	})
	if i < 0 && strings.HasPrefix(k.path, "/dev") {
		i = slices.IndexFunc(held, func(h Holder) bool {
			return h.Lockspace != "" && (h.Lockspace == x.libvirt.lvmDir || h.Lockspace == x.libvirt.scsiDir)
		})
		if i >= 0 {
			return "" // by an id of its own; which disk it is cannot be told
		}
	}
	switch {
	case i < 0:
		return notLocked
	case held[i].Shared && !k.shareable:
		return "locked shared, and has no <shareable/>: others may write it at the same time"
	case !held[i].Shared && k.shareable:
		return "locked exclusively, and has <shareable/>: nobody else can share it"
	}
	return ""
}

// diskTwice looks for disks that two running virtual machines write.
func (x *exam) diskTwice(running []domain) {
	type use struct {
		d domain
		k disk
	}
	users := map[string][]use{}
	for _, d := range running {
		if d.state != "running" {
			continue
		}
		for _, k := range d.disks {
			users[k.path] = append(users[k.path], use{d, k})
		}
	}
	for _, p := range sortedKeys(users) {
		list := users[p]
		if len(list) < 2 || !slices.ContainsFunc(list, func(u use) bool { return !u.k.shareable }) {
			continue
		}
		var names []string
		for _, u := range list {
			names = append(names, u.d.name)
		}
		x.find(idDiskTwice, p, "end all but one of them at once and check the file system on that disk; or <shareable/> in each of them, if they can share it",
			"the virtual machines %s run and write this disk, and not each has <shareable/>", strings.Join(names, ", "))
	}
}

// shareable looks at disks that several may write.
func (x *exam) shareable(running, defined []domain) {
	type use struct{ name, file string }
	shared, alone := map[string][]use{}, map[string][]use{}
	told := map[string]bool{}
	for _, d := range slices.Concat(running, defined) {
		for _, k := range d.disks {
			u := use{d.name, d.file}
			if !k.shareable {
				alone[k.path] = append(alone[k.path], u)
				continue
			}
			shared[k.path] = append(shared[k.path], u)
			where := fmt.Sprintf("%s, disk %s", d, k.target)
			if told[where] {
				continue // it runs and is defined
			}
			told[where] = true
			if k.format != "" && k.format != "raw" {
				x.find(idShareFormat, where, "remove <shareable/>, or convert the disk: qemu-img convert -O raw",
					"%s is %s and has <shareable/>: two that write it destroy its tables", k.path, k.format)
			}
			switch k.cache {
			case "writeback", "unsafe":
				x.find(idShareCache, where, "<driver name='qemu' type='raw' cache='none'/>",
					"%s has <shareable/> and cache='%s': what one writes stays in its host's memory, and others read what is old", k.path, k.cache)
			}
		}
	}
	for _, p := range sortedKeys(shared) {
		for _, u := range alone[p] {
			if slices.ContainsFunc(shared[p], func(s use) bool { return s.name != u.name }) {
				x.find(idSharePartial, u.file, "<shareable/> for that disk in each virtual machine that has it, or in none",
					"%s has <shareable/> in %s and not in %s: only one of them can run at a time", p, shared[p][0].name, u.name)
				break
			}
		}
	}
}

// unstableName is a name that the kernel gives in the order in which it finds
// devices, and which may be another disk after a boot, or on another host.
var unstableName = regexp.MustCompile(`^/dev/(sd[a-z]+|hd[a-z]|vd[a-z]+|xvd[a-z]+|nvme\d+n\d+|mmcblk\d+|dm-\d+|loop\d+|nbd\d+|rbd\d+)p?\d*$`)

// unstable looks for such names.
func (x *exam) unstable(running, defined []domain) {
	told := map[string]bool{}
	for _, d := range slices.Concat(running, defined) {
		for _, k := range d.disks {
			where := fmt.Sprintf("%s, disk %s", d, k.target)
			if told[where] || !unstableName.MatchString(k.path) || x.namedOtherwise(k.path) {
				continue
			}
			told[where] = true
			x.find(idUnstable, where, fmt.Sprintf("virsh edit %s: name it by /dev/disk/by-id/... or /dev/VG/LV (ls -l /dev/disk/by-id shows which it is)", d.name),
				"%s may be another disk on another host: then two virtual machines can write one disk, or are refused for no reason", k.path)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
