package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/identity"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestMistakes(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // what the error has to contain
	}{
		{"unknown key", "backend = \"local\"\nbackand = \"x\"\n", []string{"f.toml:2: backand: there is no such key", "request_timeout"}},
		{"unknown key in a table", "[log]\nlevel = \"info\"\ncolour = true\n", []string{"f.toml:3: log.colour: there is no such key"}},
		{"unknown table", "\n[guards]\nmode = \"off\"\n", []string{"f.toml:2: guards", "f.toml:3: guards.mode"}},
		{"dotted unknown key", "log.color = 1\n", []string{"f.toml:1: log.color"}},
		{"wrong type", "\nmax_clients = \"many\"\n", []string{"f.toml:2: max_clients: wrong type: this is a text, and a whole number without quotes is wanted"}},
		{"wrong type in a table", "[log]\nlevel = 5\n", []string{"f.toml:2: log.level: wrong type", "a text in quotes is wanted"}},
		{"duration as a number", "request_timeout = 10\n", []string{"f.toml:1: request_timeout", `for example "10s"`}},
		{"bad duration", "request_timeout = \"10\"\n", []string{"f.toml:1", `"10" is not a duration`}},
		{"duration out of range", "# c\nrequest_timeout = \"0s\"\n", []string{"f.toml:2: request_timeout: 0s is out of range: use 100ms to 5m0s"}},
		{"bad backend", "backend = \"dlm\"\n", []string{`f.toml:1: backend: "dlm" is not known: use one of "local", "cluster"`}},
		{"no clients", "max_clients = 0\n", []string{"f.toml:1: max_clients: 0 is out of range"}},
		{"relative socket", "socket = \"sock\"\n", []string{"f.toml:1: socket", "absolute path"}},
		{"long socket", "socket = \"/" + strings.Repeat("x", 107) + "\"\n", []string{"f.toml:1: socket", "unix(7)"}},
		{"relative control socket", "control_socket = \"sock\"\n", []string{"f.toml:1: control_socket", "absolute path"}},
		{"one socket for both", "socket = \"/run/x\"\ncontrol_socket = \"/run/x\"\n", []string{"f.toml:2: control_socket", "another path"}},
		{"relative admin socket", "admin_socket = \"sock\"\n", []string{"f.toml:1: admin_socket", "absolute path"}},
		{"admin socket where the main one is", "socket = \"/run/x\"\nadmin_socket = \"/run//x\"\n", []string{"f.toml:2: admin_socket", "another path"}},
		{"admin socket where the control socket is", "run_dir = \"/r\"\nadmin_socket = \"/r/control.sock\"\n", []string{"f.toml:2: admin_socket", "another path"}},
		{"admin socket of the holder", "run_dir = \"/r\"\nadmin_socket = \"/r/holder.sock\"\n", []string{"f.toml:2: admin_socket", "another path"}},
		{"control socket beside the socket", "socket = \"/r/a-sock\"\ncontrol_socket = \"/r/a-admin-sock\"\n", []string{"f.toml:1: socket", "set admin_socket"}},
		{"no admin clients", "admin_max_clients = 0\n", []string{"f.toml:1: admin_max_clients: 0 is out of range"}},
		{"run_dir", "run_dir = \"run\"\n", []string{"f.toml:1: run_dir", "absolute path"}},
		{"lockspace", "[cluster]\nlockspace = \"a b\"\n", []string{"f.toml:2: cluster.lockspace"}},
		{"level", "[log]\nlevel = \"loud\"\n", []string{"f.toml:2: log.level"}},
		{"audit_log", "audit_log = \"audit.log\"\n", []string{"f.toml:1: audit_log", "absolute path"}},
		{"metrics for everybody", "[metrics]\nlisten = \"0.0.0.0:9185\"\n", []string{"f.toml:2: metrics.listen", "other hosts", "127.0.0.1:9185"}},
		{"metrics on a network", "metrics.listen = \"192.0.2.1:9185\"\n", []string{"f.toml:1: metrics.listen", "other hosts"}},
		{"metrics on a name", "metrics.listen = \"localhost:9185\"\n", []string{"f.toml:1: metrics.listen", "no address", "127.0.0.1:9185"}},
		{"metrics without a port", "metrics.listen = \"127.0.0.1\"\n", []string{"f.toml:1: metrics.listen", "no address"}},
		{"metrics on any port", "metrics.listen = \"[::1]:0\"\n", []string{"f.toml:1: metrics.listen", "no port"}},
		{"metrics on every address", "metrics.listen = \":9185\"\n", []string{"f.toml:1: metrics.listen", "no address"}},
		{"guard mode", "[guard]\nmode = \"on\"\n", []string{"f.toml:2: guard.mode", `"on"`, `"freeze"`}},
		{"guard hold-off", "[guard]\nhold_off = \"5s\"\n", []string{"f.toml:2: guard.hold_off", "guard.grace"}},
		{"guard grace", "guard.grace = \"11m\"\n", []string{"f.toml:1: guard.grace", "0s to 10m"}},
		{"guard watchdog", "[guard]\nwatchdog = \"watchdog\"\nwatchdog_timeout = \"5500ms\"\n", []string{"f.toml:2: guard.watchdog:", "f.toml:3: guard.watchdog_timeout", "whole seconds"}},
		{"guard on loss", "[guard]\non_loss = \"pause\"\n", []string{"f.toml:2: guard.on_loss", `"freeze"`}},
		{"guard vm", "[[guard.vm]]\nname = \"a\"\nuuid = \"b\"\non_loss = \"kill\"\n", []string{"f.toml:1: guard.vm", "either name or uuid"}},
		{"guard vm uuid", "[[guard.vm]]\nuuid = \"b\"\non_loss = \"\"\n", []string{"guard.vm", "uuid \"b\" is none", "on_loss"}},
		{"guard vm key", "[[guard.vm]]\nnames = \"b\"\n", []string{"f.toml:2: guard.vm.names", "no such key"}},
		{"other case", "backend = \"cluster\"\nBackend = \"local\"\n", []string{"f.toml:2: Backend: there is no such key: write backend"}},
		{"other case alone", "BACKEND = \"cluster\"\n", []string{"f.toml:1: BACKEND: there is no such key: write backend"}},
		{"other case in a table", "[log]\nLevel = \"info\"\n", []string{"f.toml:2: log.Level: there is no such key: write log.level"}},
		{"table in other case", "[Log]\nlevel = \"info\"\n", []string{"f.toml:1: Log: there is no such key: write log", "f.toml:2: Log.level: there is no such key"}},
		{"other case and a wrong type", "Max_Clients = \"x\"\n", []string{"f.toml:1: Max_Clients: there is no such key: write max_clients"}},
		{"other letters that fold", "bac\u212aend = \"local\"\n", []string{"f.toml:1"}},
		{"dots in quotes", "'log.level' = \"info\"\n", []string{"there is no such key: the keys are"}},
		{"number for a table", "log = 5\n", []string{"f.toml:1: log: wrong type: this is a whole number, and a table [log] is wanted"}},
		{"text for a table", "\ncluster = \"x\"\n", []string{"f.toml:2: cluster: wrong type: this is a text, and a table [cluster] is wanted"}},
		{"array for a table", "\n[[log]]\nlevel = \"info\"\n", []string{"f.toml:2: log: wrong type: this is an array", "a table [log] is wanted"}},
		{"table for a text", "[backend]\nx = 1\n", []string{"f.toml:1: backend: wrong type: this is a table", "a text in quotes is wanted"}},
		{"array for a text", "backend = [\"local\"]\n", []string{"f.toml:1: backend: wrong type", "a text in quotes is wanted"}},
		{"table for a duration", "request_timeout = { s = 1 }\n", []string{"f.toml:1: request_timeout"}},
		{"inline table", "\nlog = { level = \"loud\" }\n", []string{`f.toml:2: log.level: "loud" is not known`}},
		{"wrong type in an inline table", "\nlog = { level = 5 }\n", []string{"f.toml:2: log.level: wrong type"}},
		{"unknown key in an inline table", "\nlog = { colour = 5 }\n", []string{"f.toml:2: log.colour: there is no such key"}},
		{"quoted key", "\n'max_clients' = 0\n", []string{"f.toml:2: max_clients: 0 is out of range"}},
		{"quoted key in a quoted table", "[\"log\"]\n\"level\" = \"loud\"\n", []string{"f.toml:2: log.level"}},
		{"dots with spaces", "\nlog . level = \"loud\"\n", []string{"f.toml:2: log.level"}},
		{"run_dir that is too long for its sockets", "run_dir = \"/" + strings.Repeat("x", 94) + "\"\n", []string{"f.toml:1: run_dir", "95 bytes", "at most 94"}},
		{"the same, with another control socket", "run_dir = \"/" + strings.Repeat("x", 94) + "\"\ncontrol_socket = \"/c\"\n", []string{"f.toml:1: run_dir", "at most 94"}},
		{"socket where the control socket is", "run_dir = \"/r\"\nsocket = \"/r/control.sock\"\n", []string{"f.toml:2: socket", "another path"}},
		{"socket of the holder", "run_dir = \"/r\"\nsocket = \"/r/holder.sock\"\n", []string{"f.toml:2: socket", "another path"}},
		{"control socket of the holder", "run_dir = \"/r\"\ncontrol_socket = \"/r//holder.sock\"\n", []string{"f.toml:2: control_socket", "another path"}},
		{"socket where the control socket is, with detours", "run_dir = \"/r/\"\nsocket = \"/r/./control.sock\"\n", []string{"f.toml:2: socket", "another path"}},
		{"a rule's glob", "[[identity.rule]]\npath = \"/a/**\"\nscope = \"host\"\n\n[[identity.rule]]\nscope = \"host\"\npath = \"b/**\"\n", []string{"f.toml:7: identity.rule.path: rule 2:", "begin it with /"}},
		{"a rule's scope is missing", "# c\n[[identity.rule]]\ntype = \"lvm\"\n[log]\nlevel = \"info\"\n", []string{"f.toml:2: identity.rule.scope: rule 1: it is missing", `"cluster"`}},
		{"a rule's unknown key", "[[identity.rule]]\ntype = \"lvm\"\nscope = \"host\"\ncolour = 1\n", []string{"f.toml:4: identity.rule.colour: there is no such key", "identity.rule.path"}},
		{"a rule's wrong type", "[[identity.rule]]\ntype = 5\n", []string{"f.toml:2: identity.rule.type", "a text in quotes is wanted"}},
		{"a rule's name", "[[identity.rule]]\npath = \"/a/*\"\nscope = \"cluster\"\nname = \"x-{pth}\"\n", []string{"f.toml:4: identity.rule.name: rule 1: {pth} stands for nothing", "{rest}"}},
		{"a rule that never counts", "[[identity.rule]]\npath = \"/a/**\"\nscope = \"cluster\"\n[[identity.rule]]\npath = \"/a/b/*\"\nscope = \"host\"\n", []string{"f.toml:5: identity.rule.path: rule 2: an earlier rule"}},
		{"rules in a line", "identity.rule = [{type = \"lvm\", scope = \"here\"}]\n", []string{"f.toml:1: identity.rule.scope", `"here" is not known`}},
		{"one rule as a table", "[identity.rule]\ntype = \"lvm\"\nscope = \"host\"\n", []string{"f.toml:1: identity.rule", "[[identity.rule]]"}},
		{"too many rules", strings.Repeat("[[identity.rule]]\ntype = \"lvm\"\nscope = \"host\"\n", 1001), []string{"f.toml:1: identity.rule: there are 1001 rules: use up to 1000"}},
		{"syntax", "backend = \n", []string{"f.toml:1"}},
		{"twice", "backend = \"local\"\nbackend = \"local\"\n", []string{"f.toml:2", "backend"}},
		{"two mistakes", "max_clients = 0\nsockets = 1\n", []string{"f.toml:1: max_clients", "f.toml:2: sockets"}},
		{"not utf-8", "backend = \"\xff\"\n", []string{"f.toml:1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("f.toml", []byte(tc.text))
			if err == nil {
				t.Fatal("accepted")
			}
			var m *Mistake
			if !errors.As(err, &m) {
				t.Errorf("no Mistake: %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error lacks %q:\n%v", w, err)
				}
			}
		})
	}
}

func TestEverythingSet(t *testing.T) {
	c, err := Parse("f.toml", []byte(`
backend = "cluster"
socket = "/run/x"
run_dir = "/run/y"
request_timeout = "3s"
max_clients = 1024
admin_max_clients = 9
pid_file = "/p"
idle_timeout = "1m"
virtlockd_conf = "/v"
audit_log = "/a"
[metrics]
listen = "[::1]:9185"
[cluster]
lockspace = "vms"
[log]
level = "debug"
format = "json"
filters = "1:rpc"
outputs = "2:stderr"
[guard]
mode = "freeze"
grace = "5s"
hold_off = "1m"
watchdog = "/dev/watchdog1"
watchdog_timeout = "15s"
on_loss = "freeze"
[[guard.vm]]
name = "web"
on_loss = "ignore"
[[guard.vm]]
uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
on_loss = "kill"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Backend: BackendCluster, Socket: "/run/x", ControlSocket: "/run/y/control.sock", RunDir: "/run/y", RequestTimeout: Duration(3 * time.Second), MaxClients: 1024,
		AuditLog: "/a", AdminMaxClients: 9, PIDFile: "/p", IdleTimeout: Duration(time.Minute), VirtlockdConf: "/v", Metrics: Metrics{Listen: "[::1]:9185"},
		Cluster: Cluster{Lockspace: "vms"}, Log: Log{Level: "debug", Format: "json", Filters: "1:rpc", Outputs: "2:stderr"},
		Guard: Guard{Mode: GuardFreeze, Grace: Duration(5 * time.Second), HoldOff: Duration(time.Minute), Watchdog: "/dev/watchdog1", WatchdogTimeout: Duration(15 * time.Second),
			OnLoss: OnLossFreeze, VM: []GuardVM{{Name: "web", OnLoss: OnLossIgnore}, {UUID: "c7a5fdbd-edaf-9455-926a-d65c16db1809", OnLoss: OnLossKill}}}}
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("got %+v\nwant %+v", c, want)
	}
}

// TestAdminPath: virt-admin finds it where it looks for virtlockd's.
func TestAdminPath(t *testing.T) {
	for _, k := range []struct{ text, want string }{
		{"socket = \"/run/libvirt/virtlockd-sock\"\n", "/run/libvirt/virtlockd-admin-sock"},
		{"socket = \"/a/sock\"\n", "/a/admin-sock"},
		{"socket = \"/a/x\"\n", "/a/xadmin-sock"},
		{"socket = \"/a/x\"\nadmin_socket = \"/b\"\n", "/b"},
	} {
		c, err := Parse("f.toml", []byte(k.text))
		if err != nil || c.AdminPath() != k.want {
			t.Errorf("%s: %q, %v", k.text, c.AdminPath(), err)
		}
	}
}

// TestLongestRunDir: what is accepted has room for the sockets in it.
func TestLongestRunDir(t *testing.T) {
	dir := "/" + strings.Repeat("x", 93)
	c, err := Parse("f.toml", []byte("run_dir = \""+dir+"\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.ControlSocket); n != maxSocketPath || c.ControlSocket != dir+"/control.sock" {
		t.Errorf("the control socket is %q, of %d bytes", c.ControlSocket, n)
	}
}

func TestRules(t *testing.T) {
	c, err := Parse("f.toml", []byte(`
[[identity.rule]]
path = "/srv/shared/**"
scope = "cluster"
name = "shared/{rest}"

[[identity.rule]] # a disk of this host
type = "block"
scope = "host"
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []identity.RuleText
	for _, r := range c.Identity.List() {
		got = append(got, r.Text())
	}
	want := []identity.RuleText{{Path: "/srv/shared/**", Scope: "cluster", Name: "shared/{rest}"}, {Type: "block", Scope: "host"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if none, err := Parse("f.toml", nil); err != nil || len(none.Identity.List()) != 0 {
		t.Errorf("without rules: %v, %v", none.Identity, err)
	}
}

func TestFileMayBeAbsentUnlessNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	c, err := Load(path, true)
	if err != nil || !reflect.DeepEqual(c, Default()) {
		t.Fatalf("an absent default file: %+v, %v", c, err)
	}
	if _, err := Load(path, false); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("an absent file that was named: %v", err)
	}
	if c.Backend != BackendLocal {
		t.Errorf("the default backend is %q", c.Backend)
	}
}

func TestRuntimeDir(t *testing.T) {
	env := map[string]string{"HOME": "/home/a"}
	get := func(k string) string { return env[k] }
	if s := runtimeDir(0, get); s != "/run" {
		t.Error(s)
	}
	if s := runtimeDir(1000, get); s != "/home/a/.cache" {
		t.Error(s)
	}
	env["XDG_RUNTIME_DIR"] = "/run/user/1000"
	if s := runtimeDir(1000, get); s != "/run/user/1000" {
		t.Error(s)
	}
}

func TestLogDir(t *testing.T) {
	env := map[string]string{"HOME": "/home/a"}
	get := func(k string) string { return env[k] }
	if s := logDir(0, get); s != "/var/log" {
		t.Error(s)
	}
	if s := logDir(1000, get); s != "/home/a/.local/state" {
		t.Error(s)
	}
	env["XDG_STATE_HOME"] = "/s"
	if s := logDir(1000, get); s != "/s" {
		t.Error(s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("backend = \"local\"\n[log]\nlevel = \"info\"\n")
	f.Add("[[cluster]]\nlockspace = 1\n")
	f.Add("[a.b]\n\"x y\" = 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		var err error
		testenv.Bounded(t, 1000, len(text), func() { c, err = Parse("f.toml", []byte(text)) })
		if err == nil && len(c.Identity.List()) != len(c.Identity.Rules) {
			t.Fatalf("%d of %d rules", len(c.Identity.List()), len(c.Identity.Rules))
		}
		if err == nil && len(c.problems()) > 0 {
			t.Fatalf("accepted with %v", c.problems())
		}
	})
}

// Ignored names them as the configuration does.
func TestIgnored(t *testing.T) {
	g := Guard{OnLoss: OnLossIgnore, VM: []GuardVM{{Name: "web", OnLoss: OnLossIgnore}, {UUID: "c7a5", OnLoss: OnLossIgnore}, {Name: "db", OnLoss: OnLossKill}}}
	if got, want := g.Ignored(), []string{`"c7a5"`, `"web"`, "all others"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Default().Guard.Ignored(); len(got) != 0 {
		t.Errorf("by default %q", got)
	}
}
