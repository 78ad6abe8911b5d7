// Package config reads vmlockd's configuration: one TOML file, in which every
// mistake is an error with file, line and remedy. A Config is a value that nobody
// changes after it was read.
package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/vmlockd/vmlockd/internal/logs"
)

// DefaultPath is the file that is read when no --config is given: the system's for root,
// and that of the user's session for anybody else. It need not exist.
func DefaultPath() string {
	return filepath.Join(configDir(os.Geteuid(), os.Getenv), "vmlockd", "vmlockd.toml")
}

// The backends.
const (
	BackendLocal   = "local"
	BackendCluster = "cluster"
)

// Config is everything that can be configured.
type Config struct {
	Backend        string   `toml:"backend"`         // BackendLocal or BackendCluster
	Socket         string   `toml:"socket"`          // absolute path of the socket that libvirt connects to
	AdminSocket    string   `toml:"admin_socket"`    // absolute path of the socket for virt-admin; "" means beside Socket: see AdminPath
	ControlSocket  string   `toml:"control_socket"`  // absolute path of the socket for vmlockctl; "" in the file means control.sock in RunDir
	RunDir         string   `toml:"run_dir"`         // absolute path of the directory for what must survive the daemon, on a tmpfs
	RequestTimeout Duration `toml:"request_timeout"` // 100 ms to 5 min: longest time until a request is answered
	MaxClients     int      `toml:"max_clients"`     // 1 to 1,000,000 open connections
	AuditLog       string   `toml:"audit_log"`       // absolute path of the file with what operators forced
	// AdminMaxClients is 1 to 1,000,000 open connections of virt-admin.
	AdminMaxClients int `toml:"admin_max_clients"`
	// PIDFile is the absolute path of the file with the daemon's pid; "" in the file means
	// virtlockd's if Socket is virtlockd's too, and else vmlockd.pid in RunDir.
	PIDFile string `toml:"pid_file"`
	// IdleTimeout is after how long without clients and locks the daemon ends: 0 for never,
	// or 1 s to 2,147,483 s, which is virtlockd's most.
	IdleTimeout Duration `toml:"idle_timeout"`
	// VirtlockdConf is the absolute path of libvirt's configuration of virtlockd, which need
	// not exist; "" for none.
	VirtlockdConf string `toml:"virtlockd_conf"`

	Cluster  Cluster  `toml:"cluster"`
	Guard    Guard    `toml:"guard"`
	Log      Log      `toml:"log"`
	Metrics  Metrics  `toml:"metrics"`
	Identity Identity `toml:"identity"`

	// Warnings are what a person should know of the files, and is no mistake.
	Warnings []string `toml:"-" json:"-"`
}

// Cluster is the table [cluster].
type Cluster struct {
	Lockspace string `toml:"lockspace"` // name of the DLM lockspace, the same on all hosts; 1 to 64 letters, digits, - and _
}

// Log is the table [log].
type Log struct {
	Level  string `toml:"level"`  // debug, info, warning or error
	Format string `toml:"format"` // auto, text, json or journal
	// Filters and Outputs are in libvirt's syntax: logs.CheckFilters, logs.CheckOutputs.
	Filters string `toml:"filters"`
	Outputs string `toml:"outputs"`
}

// Metrics is the table [metrics].
type Metrics struct {
	// Listen is a loopback address and port at which everybody on this host may
	// read the metrics; empty for none.
	Listen string `toml:"listen"`
}

// Duration is a time span, written like "10s" or "1m30s".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf(`%q is not a duration: write a number and a unit, for example "10s" or "500ms"`, b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string { return time.Duration(d).String() }

// Default is the configuration of a host that has no file. The socket is
// virtlockd's, where libvirt looks for it: that of the system for root, and
// that of the user's session for anybody else (src/locking/lock_driver_lockd.c).
func Default() Config {
	run := filepath.Join(runtimeDir(os.Geteuid(), os.Getenv), "vmlockd")
	return Config{
		Backend:        BackendLocal,
		Socket:         filepath.Join(runtimeDir(os.Geteuid(), os.Getenv), "libvirt", "virtlockd-sock"),
		ControlSocket:  filepath.Join(run, controlName),
		RunDir:         run,
		RequestTimeout: Duration(10 * time.Second),
		MaxClients:     4096,
		AuditLog:       filepath.Join(logDir(os.Geteuid(), os.Getenv), "vmlockd", "audit.log"),

		AdminMaxClients: 5000, // virtlockd's (src/locking/lock_daemon_config.c)
		PIDFile:         virtlockdPID(os.Geteuid(), os.Getenv),
		VirtlockdConf:   filepath.Join(configDir(os.Geteuid(), os.Getenv), "libvirt", "virtlockd.conf"),

		Cluster: Cluster{Lockspace: "vmlockd"},
		Guard:   defaultGuard(),
		Log:     Log{Level: "info", Format: "auto"},
	}
}

// besides is where virt-admin looks for the socket of a daemon with that one: at
// virtlockd-admin-sock for virtlockd-sock.
func besides(socket string) string {
	dir, name := filepath.Split(socket)
	return dir + strings.TrimSuffix(name, "sock") + "admin-sock"
}

func runtimeDir(uid int, getenv func(string) string) string {
	if uid == 0 {
		return "/run"
	}
	if run := getenv("XDG_RUNTIME_DIR"); run != "" {
		return run
	}
	return filepath.Join(getenv("HOME"), ".cache")
}

// BackgroundLog is the absolute path of the log of a daemon without a terminal and
// without a journal.
func (c *Config) BackgroundLog() string {
	return filepath.Join(filepath.Dir(c.AuditLog), "vmlockd.log")
}

// configDir is where configuration is, as virtlockd(8) says it.
func configDir(euid int, getenv func(string) string) string {
	if euid == 0 {
		return "/etc"
	}
	if dir := getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(getenv("HOME"), ".config")
}

// virtlockdPID is virtlockd's pid file (virtlockd(8)).
func virtlockdPID(euid int, getenv func(string) string) string {
	dir := runtimeDir(euid, getenv)
	if euid != 0 {
		dir = filepath.Join(dir, "libvirt")
	}
	return filepath.Join(dir, "virtlockd.pid")
}

// logDir is where logs go that must outlive the boot: for a user who is not
// root, where the XDG Base Directory Specification has them.
func logDir(euid int, getenv func(string) string) string {
	if euid == 0 {
		return "/var/log"
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(getenv("HOME"), ".local", "state")
}

// The names of sockets in RunDir. No other one is longer than controlName.
const (
	controlName = "control.sock"
	holderName  = "holder.sock"
)

// HolderSocket is the absolute path of the socket of the process that keeps
// locked files open.
func (c *Config) HolderSocket() string { return filepath.Join(c.RunDir, holderName) }

// Load reads path. With optional, a file that does not exist is an empty one.
// The error joins everything that is wrong, one *Mistake each where a place in
// the file can be named.
func Load(path string, optional bool) (Config, error) {
	c, _, err := load(path, optional)
	return c, err
}

// Parse reads the text of a file that is called path in errors.
func Parse(path string, text []byte) (Config, error) {
	c, _, err := parse(path, text)
	return c, err
}

// parse is Parse, and returns the keys that the text sets, with their tables.
func parse(path string, text []byte) (c Config, set map[string]bool, err error) {
	// Into a map first: into a struct the library takes "Backend" for "backend" too,
	// and which of the two counts, if both are there, is left to chance.
	meta, err := toml.Decode(string(text), &map[string]any{})
	if err != nil {
		return Config{}, nil, mistakeOf(path, text, err)
	}
	all := unknownKeys(path, text, meta.Keys())
	c = Default()
	c.ControlSocket, c.PIDFile = "", ""
	if _, err := toml.Decode(string(text), &c); err != nil {
		return Config{}, nil, errors.Join(append(all, mistakeOf(path, text, err))...)
	}
	for _, p := range c.problems() {
		all = append(all, &Mistake{File: path, Line: lineOf(text, strings.Split(p.key, ".")), Key: p.key, What: p.what})
	}
	all = append(all, c.Identity.check(path, text)...)
	if len(all) > 0 {
		return Config{}, nil, errors.Join(all...)
	}
	c.ControlSocket, c.PIDFile = c.controlSocket(), c.pidFile()
	set = map[string]bool{}
	for _, key := range meta.Keys() {
		set[key.String()] = true
	}
	return c, set, nil
}

// pidFile is where the pid file is, also if the file does not say.
func (c *Config) pidFile() string {
	if c.PIDFile != "" {
		return c.PIDFile
	}
	if d := Default(); filepath.Clean(c.Socket) == d.Socket {
		return d.PIDFile
	}
	return filepath.Join(c.RunDir, "vmlockd.pid")
}

// AdminPath is the absolute path of the socket for virt-admin.
func (c *Config) AdminPath() string {
	if c.AdminSocket != "" {
		return c.AdminSocket
	}
	return besides(c.Socket)
}

// controlSocket is where the control socket is, also if the file does not say.
func (c *Config) controlSocket() string {
	if c.ControlSocket != "" {
		return c.ControlSocket
	}
	return filepath.Join(c.RunDir, controlName)
}

type problem struct{ key, what string }

func (c *Config) problems() (list []problem) {
	add := func(key, format string, args ...any) {
		list = append(list, problem{key, fmt.Sprintf(format, args...)})
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			add(key, "%q is not known: use one of %s", value, quoted(allowed))
		}
	}
	oneOf("backend", c.Backend, BackendLocal, BackendCluster)
	oneOf("log.level", c.Log.Level, "debug", "info", "warning", "error")
	oneOf("log.format", c.Log.Format, "auto", "text", "json", "journal")
	socket := func(key, path string) {
		switch {
		case !filepath.IsAbs(path):
			add(key, "%q is not an absolute path: begin it with /", path)
		case len(path) > maxSocketPath:
			add(key, "the path is %d bytes long: unix(7) allows %d, choose a shorter one", len(path), maxSocketPath)
		case strings.ContainsRune(path, 0):
			add(key, "the path contains a NUL byte: remove it")
		case filepath.Clean(path) == c.HolderSocket():
			add(key, "%q is where the process listens that keeps locked files open: choose another path", path)
		}
	}
	socket("socket", c.Socket)
	key := "control_socket"
	if c.ControlSocket == "" {
		key = "socket" // this one is in the file, or no such thing could happen
	} else {
		socket(key, c.ControlSocket)
	}
	if c.controlSocket() == filepath.Clean(c.Socket) || c.ControlSocket == c.Socket {
		add(key, "%q is both the socket of libvirt and the control socket: choose another path for one of them", c.Socket)
	}
	c.adminProblems(add, socket)
	switch {
	case !filepath.IsAbs(c.RunDir) || strings.ContainsRune(c.RunDir, 0):
		add("run_dir", "%q is not an absolute path: begin it with /", c.RunDir)
	case len(filepath.Join(c.RunDir, controlName)) > maxSocketPath:
		add("run_dir", "the path is %d bytes long: sockets in it may have %d (unix(7)), so choose one of at most %d", len(c.RunDir), maxSocketPath, maxSocketPath-len(controlName)-1)
	}
	for _, f := range []struct{ key, path string }{{"pid_file", c.PIDFile}, {"virtlockd_conf", c.VirtlockdConf}} {
		if f.path != "" && (!filepath.IsAbs(f.path) || strings.ContainsRune(f.path, 0)) {
			add(f.key, "%q is not an absolute path: begin it with /", f.path)
		}
	}
	if err := logs.CheckFilters(c.Log.Filters); err != nil {
		add("log.filters", "%v", err)
	}
	if err := logs.CheckOutputs(c.Log.Outputs); err != nil {
		add("log.outputs", "%v", err)
	}
	if d := time.Duration(c.IdleTimeout); d != 0 && (d < time.Second || d > MaxIdleTimeout) {
		add("idle_timeout", "%v is out of range: use 1s to %v, or 0s for never", d, MaxIdleTimeout)
	}
	if n := c.AdminMaxClients; n < 1 || n > maxMaxClients {
		add("admin_max_clients", "%d is out of range: use 1 to %d", n, maxMaxClients)
	}
	if !filepath.IsAbs(c.AuditLog) || strings.ContainsRune(c.AuditLog, 0) {
		add("audit_log", "%q is not an absolute path: begin it with /", c.AuditLog)
	}
	if what := listenProblem(c.Metrics.Listen); what != "" {
		add("metrics.listen", "%q %s", c.Metrics.Listen, what)
	}
	if d := time.Duration(c.RequestTimeout); d < minTimeout || d > maxTimeout {
		add("request_timeout", "%v is out of range: use %v to %v", d, minTimeout, maxTimeout)
	}
	if c.MaxClients < 1 || c.MaxClients > maxMaxClients {
		add("max_clients", "%d is out of range: use 1 to %d", c.MaxClients, maxMaxClients)
	}
	if c.AdminMaxClients < 1 || c.AdminMaxClients > maxMaxClients {
		add("admin_max_clients", "%d is out of range: use 1 to %d", c.AdminMaxClients, maxMaxClients)
	}
	if n := c.Cluster.Lockspace; n == "" || len(n) > maxLockspaceName || strings.Trim(n, lockspaceChars) != "" {
		add("cluster.lockspace", "%q cannot name a lockspace: use 1 to %d letters, digits, '-' and '_'", n, maxLockspaceName)
	}
	return append(list, c.Guard.problems()...)
}

// adminProblems finds what is wrong with the admin socket, where socket checks any.
func (c *Config) adminProblems(add func(key, format string, args ...any), socket func(key, path string)) {
	if c.AdminSocket != "" {
		socket("admin_socket", c.AdminSocket)
		for _, other := range []string{c.Socket, c.controlSocket()} {
			if filepath.Clean(c.AdminSocket) == filepath.Clean(other) {
				add("admin_socket", "%q is another socket of vmlockd already: choose another path", c.AdminSocket)
			}
		}
		return
	}
	path := c.AdminPath()
	// Where it is too long there is no admin socket, and the log says so.
	if filepath.Clean(path) == c.controlSocket() || filepath.Clean(path) == c.HolderSocket() {
		add("socket", "virt-admin's socket %s beside it is another socket of vmlockd already: set admin_socket too", path)
	}
}

// MaxIdleTimeout is the longest of Config.IdleTimeout: milliseconds in an int of C, as in
// virtlockd (src/locking/lock_daemon.c).
const MaxIdleTimeout = math.MaxInt32 / 1000 * time.Second

const (
	maxSocketPath = 107 // sun_path of unix(7), less the NUL
	minTimeout    = 100 * time.Millisecond
	maxTimeout    = 5 * time.Minute
	maxMaxClients = 1_000_000
	// maxLockspaceName is DLM_LOCKSPACE_LEN of include/uapi/linux/dlmconstants.h.
	maxLockspaceName = 64
	// The name becomes part of device and sysfs names.
	lockspaceChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
)

// listenProblem is what is wrong with an address for metrics, or "".
func listenProblem(listen string) string {
	if listen == "" {
		return ""
	}
	const example = `write "127.0.0.1:9185" or "[::1]:9185"`
	at, err := netip.ParseAddrPort(listen)
	switch {
	case err != nil:
		return "is no address with a port: " + example
	case !at.Addr().Unmap().IsLoopback():
		return "can be reached from other hosts, where nobody would be asked who he is: " + example + ", and let an agent on this host pass the metrics on"
	case at.Port() == 0:
		return "has no port that others could know: " + example
	}
	return ""
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, ", ")
}
