package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/config"
)

// libvirtSocket is where libvirt's plug-in connects to in the system's session
// (virLockManagerLockDaemonPath in src/locking/lock_driver_lockd.c).
const libvirtSocket = "/run/libvirt/virtlockd-sock"

// configuration reads vmlockd's configuration and says what is wrong with it. With
// a mistake in it the running daemon, if there is one, says which backend it has.
func (x *exam) configuration() {
	x.cfg, x.cfgOK = config.Default(), true
	text, err := x.System.ReadFile(x.Config, maxConf)
	switch {
	case absent(err) && !x.ConfigNamed:
	case err != nil:
		x.cfgOK = false
		x.unchecked(x.Config, err, "the configuration of vmlockd")
	default:
		c, err := config.Parse(x.Config, text)
		if err == nil {
			x.cfg = c
			break
		}
		x.cfgOK = false
		for _, m := range mistakes(err) {
			where := x.Config
			if m.Line > 0 {
				where = fmt.Sprintf("%s:%d", x.Config, m.Line)
			}
			x.find(idConfig, where, "correct that line; 'vmlockd --check-config' checks the file", "%s", strings.TrimPrefix(m.Key+": "+m.What, ": "))
		}
	}
	if x.silent == nil {
		if x.cfgOK && (x.daemon.Backend != x.cfg.Backend || x.daemon.Socket != x.cfg.Socket) {
			x.find(idConfigStale, x.Config, "systemctl restart vmlockd; a change of backend only while no virtual machine runs on this host",
				"vmlockd runs with backend %q on %s, and the file says %q on %s: it was changed since vmlockd was started",
				x.daemon.Backend, x.daemon.Socket, x.cfg.Backend, x.cfg.Socket)
		}
		x.cfg.Backend, x.cfg.Socket = x.daemon.Backend, x.daemon.Socket
	}
	x.backend = x.cfg.Backend
	if x.cfg.Socket == libvirtSocket || sameSocket(x.System, x.cfg.Socket) {
		return
	}
	x.find(idSocket, x.Config, fmt.Sprintf("remove the line socket, or write socket = %q", libvirtSocket),
		"vmlockd listens on %s, and libvirt connects to %s: no virtual machine gets a lock", x.cfg.Socket, libvirtSocket)
}

// mistakes takes the error of config.Parse apart.
func mistakes(err error) (list []*config.Mistake) {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range all.Unwrap() {
			list = append(list, mistakes(e)...)
		}
		return list
	}
	var m *config.Mistake
	if !errors.As(err, &m) {
		m = &config.Mistake{What: err.Error()}
	}
	return []*config.Mistake{m}
}

// sameSocket says that a path is another name of libvirt's socket.
func sameSocket(s System, path string) bool {
	clean := func(p string) string {
		if rest, ok := strings.CutPrefix(p, "/var/run/"); ok {
			p = "/run/" + rest
		}
		return sysPath(p)
	}
	if clean(path) == libvirtSocket {
		return true
	}
	to, err := s.Readlink(libvirtSocket)
	return err == nil && (clean(to) == clean(path) || clean(sysPath("/run/libvirt", to)) == clean(path))
}

// lockDaemon looks at who answers libvirt.
func (x *exam) lockDaemon() {
	daemons := x.daemons()
	switch {
	case x.silent == nil:
	case errors.Is(x.silent, errPermission):
		x.unchecked("vmlockd", x.silent, "how it is")
	case len(daemons) > 0:
		x.find(idNoAnswer, daemons[0].String(), "journalctl -u vmlockd; if it hangs, kill -KILL "+strconv.Itoa(daemons[0].pid)+" and start it again: locks stay held",
			"vmlockd runs and does not answer: %v", x.silent)
	case x.procsErr == nil:
		x.find(idNotRunning, x.cfg.Socket, "systemctl enable --now vmlockd; if it fails, journalctl -u vmlockd says why",
			"vmlockd does not run: no virtual machine can start; what runs keeps its locks")
	}
	x.socket(daemons)
	for _, p := range x.called("vmlockd") {
		if exe, err := x.System.Readlink(p.dir() + "/exe"); err == nil && strings.HasSuffix(exe, " (deleted)") && slices.Contains(daemons, p) {
			x.find(idBinaryReplaced, p.String(), "systemctl reload vmlockd (or kill -USR1 "+strconv.Itoa(p.pid)+"): locks and connections are kept",
				"its program %s was replaced or removed, and the old one still runs", strings.TrimSuffix(exe, " (deleted)"))
		}
		x.openFiles(p)
	}
	x.reported()
}

// holderArgument is what the process that keeps locked files open is started with
// (internal/holder).
const holderArgument = "hold-descriptors"

// daemons are the vmlockd processes that serve: not those that keep files open.
func (x *exam) daemons() (list []process) {
	if x.silent == nil && x.daemon.PID > 0 {
		return []process{x.byPID(x.daemon.PID)}
	}
	for _, p := range x.called("vmlockd") {
		if args := x.args(p); len(args) < 2 || args[1] != holderArgument {
			list = append(list, p)
		}
	}
	return list
}

// socket looks at who listens where libvirt connects to. It connects only if that
// is vmlockd: where systemd listens for virtlockd, that would start it.
func (x *exam) socket(daemons []process) {
	text, err := x.System.ReadFile("/proc/net/unix", maxProc)
	if err != nil {
		x.unchecked("/proc/net/unix", err, "who listens on "+x.cfg.Socket)
		return
	}
	inodes := listening(text, x.cfg.Socket)
	if len(inodes) == 0 {
		if len(daemons) > 0 && x.counts[idNoAnswer] == 0 {
			x.find(idSocketMissing, x.cfg.Socket, "systemctl restart vmlockd: locks stay held", "nobody listens there: libvirt cannot ask for locks")
		}
		return
	}
	ours := false
	for _, inode := range inodes {
		owners, err := x.owners(inode, daemons)
		if err != nil {
			x.unchecked(x.cfg.Socket, err, "which program listens there")
			return
		}
		if slices.ContainsFunc(owners, func(p process) bool { return slices.Contains(daemons, p) }) {
			ours = true
			continue
		}
		for _, p := range owners {
			remedy := "systemctl disable --now virtlockd.socket virtlockd-admin.socket virtlockd, then systemctl restart vmlockd"
			if p.comm != "systemd" && p.comm != "virtlockd" {
				remedy = fmt.Sprintf("end the process %d, then systemctl restart vmlockd", p.pid)
			}
			x.find(idOtherDaemon, p.String(), remedy, "it listens on %s, where libvirt asks for locks: virtual machines that start now may get theirs from it, and vmlockd knows nothing of that", x.cfg.Socket)
		}
	}
	if !ours || x.counts[idOtherDaemon] > 0 {
		return
	}
	// vmlockd may listen on a socket that has lost its path, or whose path is now
	// that of one that another program has left behind.
	switch err := x.System.Connect(x.ctx, x.cfg.Socket); {
	case absent(err), errors.Is(err, syscall.ECONNREFUSED):
		x.find(idSocketMissing, x.cfg.Socket, "systemctl restart vmlockd: locks stay held", "the socket was removed or replaced while vmlockd listens on it, and libvirt cannot ask for locks: %v", err)
	case err != nil && x.silent == nil:
		x.unchecked(x.cfg.Socket, err, "whether libvirt can connect")
	}
}

// listening finds the sockets in /proc/net/unix that listen on a path (proc(5)).
func listening(text []byte, path string) (inodes []string) {
	for line := range strings.Lines(string(text)) {
		// Num: RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON.
		f := strings.Fields(line)
		if len(f) < 8 || f[3] != "00010000" {
			continue
		}
		if name := strings.Join(f[7:], " "); name == path || name == strings.Replace(path, "/run/", "/var/run/", 1) {
			inodes = append(inodes, f[6])
		}
	}
	return inodes
}

// owners finds who has a socket open: the expected ones first, as there may be
// very many processes.
func (x *exam) owners(inode string, expected []process) (list []process, err error) {
	want := "socket:[" + inode + "]"
	has := func(p process) (bool, error) {
		names, err := x.System.List(p.dir()+"/fd", maxOpenFiles)
		if absent(err) {
			return false, nil // it has ended
		}
		if err != nil {
			return false, err
		}
		for _, n := range names {
			if to, err := x.System.Readlink(p.dir() + "/fd/" + n); err == nil && to == want {
				return true, nil
			}
		}
		return false, nil
	}
	for _, group := range [][]process{expected, x.called("virtlockd", "systemd"), x.procs} {
		for _, p := range group {
			ok, e := has(p)
			if e != nil {
				err = e
			}
			if ok {
				list = append(list, p)
			}
		}
		if len(list) > 0 {
			return list, nil
		}
		if x.ctx.Err() != nil {
			return nil, x.ctx.Err()
		}
	}
	if err == nil {
		err = errors.New("no process has it open")
	}
	return nil, err
}

// openFiles compares how many files a process may open with how many it has. One
// that locks for many disks needs one for each, and one for each virtual machine.
func (x *exam) openFiles(p process) {
	text, err := x.System.ReadFile(p.dir()+"/limits", maxProc)
	if absent(err) {
		return
	}
	limit := 0
	if err == nil {
		limit, err = openFileLimit(text)
	}
	var names []string
	if err == nil {
		names, err = x.System.List(p.dir()+"/fd", maxOpenFiles)
	}
	if err != nil {
		x.unchecked(p.String(), err, "how many files it may open")
		return
	}
	if limit > 0 && len(names)*4 > limit*3 {
		x.find(idNoFile, p.String(), "LimitNOFILE=65536 in the section [Service] of its unit, then systemctl daemon-reload and systemctl restart vmlockd",
			"%d of %d files are open: with more virtual machines, locks will be refused", len(names), limit)
	}
}

// openFileLimit is the soft limit in /proc/PID/limits; 0 if there is none.
func openFileLimit(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if f := strings.Fields(rest); ok && len(f) > 1 {
			if f[0] == "unlimited" {
				return 0, nil
			}
			return strconv.Atoi(f[0])
		}
	}
	return 0, errors.New("its limits do not say")
}

// reported turns what the daemon says of itself into findings.
func (x *exam) reported() {
	if d := x.daemon.Draining; d != nil {
		by := ""
		if d.By != "" {
			by = " by " + d.By
		}
		if d.Reason != "" {
			by += ": " + d.Reason
		}
		x.find(idDraining, "vmlockd", "vmlockctl drain --undo", "this host grants no new locks since %s%s", d.Since.UTC().Format("2006-01-02T15:04:05Z"), by)
	}
	for _, w := range x.daemon.Warnings {
		if !slices.Contains(covered, w.Code) {
			x.find(idDaemonWarning, w.Code, "vmlockctl status; journalctl -u vmlockd", "%s", w.Message)
		}
	}
}

// runDir looks at the directory for what must survive the daemon.
func (x *exam) runDir() {
	dir := x.cfg.RunDir
	info, err := x.System.Stat(dir)
	switch {
	case absent(err):
		if x.silent == nil {
			x.find(idRunDirMissing, dir, "systemctl restart vmlockd while no virtual machine runs on this host", "run_dir was removed while vmlockd runs: after a restart it would not know its locks")
		}
		return
	case err != nil:
		x.unchecked(dir, err, "run_dir")
		return
	case info.Mode&0o077 != 0 || info.UID != 0:
		x.find(idRunDirOpen, dir, fmt.Sprintf("chown root: %s; chmod 700 %s", dir, dir),
			"it belongs to user %d and has mode %#o: others than root could change what vmlockd knows of its locks", info.UID, info.Mode.Perm())
	}
	if !info.Tmpfs {
		x.find(idRunDirDisk, dir, "run_dir = \"/run/vmlockd\" in "+x.Config,
			"it is not on a tmpfs: each lock waits for a disk, and what is there does not end with the boot, as locks do")
	}
	names, err := list(x.System, dir)
	if err != nil {
		x.unchecked(dir, err, "the journal")
	}
	for _, n := range names {
		if !strings.HasPrefix(n, "journal-") {
			continue
		}
		files, err := list(x.System, sysPath(dir, n))
		if err != nil {
			x.unchecked(sysPath(dir, n), err, "the journal")
		}
		for _, f := range files {
			if strings.Contains(f, ".damaged-") {
				x.find(idJournal, sysPath(dir, n, f), "journalctl -u vmlockd says what was damaged; a reboot of this host settles it",
					"the journal was damaged, and this part of it set aside: disks that it may have told of stay locked until their virtual machines end")
			}
		}
	}
}
