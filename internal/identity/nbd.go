package identity

import (
	"path"
	"strings"

	"github.com/vmlockd/vmlockd/internal/lazyregexp"
)

// nbd: only the client's program knows the export; the kernel has what it told
// (NBD_ATTR_BACKEND_IDENTIFIER of <linux/nbd-netlink.h>). Either is what somebody has
// written on this host: a server has several names and addresses, so it is doubtful.
// rbd-nbd tells a random UUID unless it has --cookie, which names nothing.
func (l *lookup) nbd(id *Identity, dir string) {
	id.Type = TypeNBD
	const otherwise = "to a host where it is called otherwise it is another disk"
	if backend := l.read(dir, "backend"); backend != "" && !plainUUID().MatchString(backend) {
		id.Name, id.Doubt = "nbd:"+backend, true
		id.step("%s is the export that its client calls %s; %s", id.Path, backend, otherwise)
		return
	}
	pid := l.read(dir, "pid")
	if pid == "" {
		return // or it would be /proc/cmdline, which is the kernel's
	}
	if name := nbdExport(l.readBytes("/proc", pid, "cmdline"), id.Path); name != "" {
		id.Name, id.Doubt = "nbd:"+name, true
		id.step("%s is %s, says the command line of its client; %s", id.Path, name, otherwise)
	}
}

var plainUUID = lazyregexp.New(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// nbdFlags are the options of nbd-client(8), and whether a value comes with them. All
// have one dash or two, as for getopt_long_only(3).
var nbdFlags = map[string]bool{
	"N": true, "name": true, "b": true, "block-size": true, "B": true, "size": true, "t": true, "timeout": true,
	"C": true, "connections": true, "F": true, "certfile": true, "K": true, "keyfile": true, "A": true, "cacertfile": true,
	"H": true, "tlshostname": true,
	"L": false, "nonetlink": false, "n": false, "nofork": false, "p": false, "persist": false, "s": false, "swap": false,
	"S": false, "sdp": false, "R": false, "readonly": false, "P": false, "preinit": false, "x": false, "enable-tls": false,
	"g": false, "no-optgo": false, "m": false, "systemd-mark": false,
}

// nbdExport is server, port and export on the command line of the nbd-client that has
// a device; "" if it is another program's or for another device - the kernel keeps the
// number of a process that has ended - or is written in a way that is not known, such
// as one that names a unix socket.
func nbdExport(cmdline []byte, device string) string {
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if path.Base(args[0]) != "nbd-client" {
		return ""
	}
	var plain []string
	name := ""
	for i := 1; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			plain = append(plain, args[i])
			continue
		}
		flag, value, given := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		wants, known := nbdFlags[flag]
		switch {
		case !known || given && !wants:
			return ""
		case wants && !given:
			if i++; i == len(args) {
				return ""
			}
			value = args[i]
		}
		if flag == "N" || flag == "name" {
			name = value
		}
	}
	port := "10809" // NBD_DEFAULT_PORT
	switch {
	case len(plain) == 3 && strings.Trim(plain[1], "0123456789") == "":
		port = plain[1]
	case len(plain) != 2:
		return ""
	}
	if host := plain[0]; plain[len(plain)-1] == device && host != "" && !strings.HasPrefix(host, "/") {
		return host + ":" + port + "/" + name
	}
	return ""
}
