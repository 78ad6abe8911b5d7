package lab

import (
	"fmt"
	"slices"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// unneeded are units of systemd that a node has no use for: there are no devices to find, nothing to mount, and no first boot. Each would
// cost it some tenths of a second.
var unneeded = []string{
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"systemd-firstboot.service", "systemd-machine-id-commit.service", "systemd-sysusers.service", "systemd-repart.service", "systemd-remount-fs.service",
	"systemd-random-seed.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-update-utmp.service",
	"systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-modules-load.service", "kmod-static-nodes.service",
	"systemd-sysctl.service", "systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "systemd-journal-flush.service",
	"systemd-initctl.socket", "systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-journald-audit.socket",
	"dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	"cryptsetup.target", "veritysetup.target", "integritysetup.target", "tmp.mount",
}

// labTarget is what a node with systemd boots.
const labTarget = `[Unit]
Description=A node of the lab
Requires=basic.target
After=basic.target
Wants=dbus.socket%s
`

// systemd makes systemd process 1 of a node. The units that this machine has enabled are not those of the nodes.
func (c Config) systemd(n *wire.NodeConfig, add func(string, uint32, string)) {
	const units = "/etc/systemd/system/"
	n.Systemd = true
	n.Mounts = append(n.Mounts, wire.Mount{Path: units}, wire.Mount{Path: "/var/log/journal"})
	for _, u := range unneeded {
		n.Links[units+u] = "/dev/null"
	}
	// Without one systemd would take it for the first boot, and enable all that is installed here.
	add("/etc/machine-id", 0o444, fmt.Sprintf("6c6f636b00004000800000000000%04x\n", n.ID))
	add("/etc/fstab", 0o644, "# The lab has mounted all.\n")

	wants := ""
	n.Services = slices.DeleteFunc(n.Services, func(s wire.Service) bool {
		unit := map[string]string{ServiceCorosync: "corosync.service", ServiceDLM: "dlm.service"}[s.Name]
		if unit == "" {
			return false
		}
		wants += " " + unit
		// Debian has what corosync prints thrown away; here it is where it is without systemd too.
		log := "append:" + wire.LogDir + "/" + s.LogName()
		add(units+unit+".d/lab.conf", 0o644, "[Service]\nStandardOutput="+log+"\nStandardError="+log+"\n")
		return true
	})
	add(units+"default.target", 0o644, fmt.Sprintf(labTarget, wants))
}
