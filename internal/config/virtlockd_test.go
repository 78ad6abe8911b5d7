package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// files writes both files, and returns them as named on the command line.
func files(t *testing.T, own, virtlockd string) Files {
	t.Helper()
	dir := t.TempDir()
	f := Files{Own: filepath.Join(dir, "vmlockd.toml"), Named: true, Virtlockd: filepath.Join(dir, "virtlockd.conf")}
	for path, text := range map[string]string{f.Own: own, f.Virtlockd: virtlockd} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

const everyKey = "log_level = 1\nlog_filters = \"1:rpc\"\nlog_outputs=\"2:stderr\" # here\nmax_clients = 20\nadmin_max_clients = 5\n"

func TestVirtlockdConf(t *testing.T) {
	c, err := files(t, "", everyKey).Load()
	if err != nil {
		t.Fatal(err)
	}
	if c.Log != (Log{Level: "debug", Format: "auto", Filters: "1:rpc", Outputs: "2:stderr"}) || c.MaxClients != 20 || c.AdminMaxClients != 5 || len(c.Warnings) > 0 {
		t.Errorf("%+v", c)
	}
	const own = "max_clients = 7\nadmin_max_clients = 8\n[log]\nlevel = \"error\"\nfilters = \"2:guard\"\noutputs = \"4:stderr\"\n"
	c, err = files(t, own, everyKey).Load()
	if err != nil {
		t.Fatal(err)
	}
	if c.Log != (Log{Level: "error", Format: "auto", Filters: "2:guard", Outputs: "4:stderr"}) || c.MaxClients != 7 || c.AdminMaxClients != 8 {
		t.Errorf("vmlockd's own file does not win: %+v", c)
	}
	if c, err = files(t, "log.format = \"json\"", everyKey).Load(); err != nil || c.Log.Outputs != "" || c.Log.Format != "json" || c.Log.Level != "debug" {
		t.Errorf("a format of vmlockd's own file, and outputs of the other: %+v, %v", c.Log, err)
	}
	for n, name := range []string{"debug", "info", "warning", "error"} {
		if c, err = files(t, "", "log_level = "+string(rune('1'+n))).Load(); err != nil || c.Log.Level != name {
			t.Errorf("level %d: %q, %v", n+1, c.Log.Level, err)
		}
	}
}

// TestVirtlockdConfIsSomebodyElses: what means nothing here is a warning that says where.
func TestVirtlockdConfIsSomebodyElses(t *testing.T) {
	f := files(t, "", "keepalive = 3\n\nmax_clients = 20\nmax_clients = 30\n")
	c, err := f.Load()
	if err != nil || c.MaxClients != 20 || len(c.Warnings) != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	for i, want := range []string{f.Virtlockd + ":1: keepalive: means nothing", f.Virtlockd + ":4: max_clients: is set in line 3 already"} {
		if !strings.Contains(c.Warnings[i], want) {
			t.Errorf("%q, want %q", c.Warnings[i], want)
		}
	}
}

func TestVirtlockdConfMistakes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"\nlog_level = 0", ":2: log_level: 0 is no level: use 1 (debug)"},
		{"log_level = 5", ":1: log_level: 5 is no level"},
		{`log_level = "3"`, ":1: log_level: this is a text in quotes, and a number is wanted"},
		{"log_filters = 3", "a text in quotes is wanted"},
		{`log_filters = [ "1:a" ]`, "this is a list"},
		{`log_filters = "rpc"`, `:1: log_filters: "rpc" is no filter: write a number`},
		{"log_outputs = 3", "a text in quotes is wanted"},
		{`log_outputs = "1:file:relative"`, `:1: log_outputs: "1:file:relative" is no output: write`},
		{"max_clients = 0", ":1: max_clients: 0 is out of range: use 1 to 1000000"},
		{"admin_max_clients = -1", ":1: admin_max_clients: -1 is out of range"},
		{"max_clients = 1\nlog_level", ":2: log_level: = and a value are expected"},
		{`backend = "cluster"`, ":1: backend: this is a key of vmlockd's own file"},
		{`log.level = "info"`, "give it a name that does not end in .conf"},
		{"[log]\nlevel = 3", "give it a name that does not end in .conf"},
	} {
		for _, own := range []string{"", "max_clients = 5\nlog.level = \"info\"\n"} { // also where it does not count
			f := files(t, own, c.text)
			got, err := f.Load()
			if strings.HasPrefix(strings.TrimSpace(c.text), "log_") || own != "" && strings.HasPrefix(c.text, "max_clients = 0") {
				// What virtlockd passes over, or our own file goes before, keeps nobody from starting.
				if err == nil && len(got.Warnings) == 1 {
					err = errors.New(got.Warnings[0])
				} else {
					err = fmt.Errorf("%d warnings, and %w", len(got.Warnings), err)
				}
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), f.Virtlockd+":") {
				t.Errorf("%q: %v, want %q", c.text, err, c.want)
			}
		}
	}
	// And in our own file the keys of the other.
	if _, err := Parse("x.toml", []byte("log_level = 3")); err == nil || !strings.Contains(err.Error(), "x.toml:1: log_level: this is a key of virtlockd.conf: write log.level here") {
		t.Error(err)
	}
}

func TestVirtlockdConfAbsent(t *testing.T) {
	f := files(t, "", "")
	missing := filepath.Join(filepath.Dir(f.Own), "none.conf")
	if err := os.WriteFile(f.Own, []byte("virtlockd_conf = \""+missing+"\""), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Virtlockd = ""
	if _, err := f.Load(); err != nil {
		t.Errorf("the file of the configuration may be absent: %v", err)
	}
	if err := os.WriteFile(missing, []byte(everyKey), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := f.Load(); err != nil || c.MaxClients != 20 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := os.Remove(missing); err != nil {
		t.Fatal(err)
	}
	f.Virtlockd = missing
	if _, err := f.Load(); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("one that is named must be there: %v", err)
	}
	if err := os.Mkdir(missing, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a directory: %v", err)
	}
}

func TestFilesOf(t *testing.T) {
	for _, c := range []struct {
		named []string
		want  Files
		wrong string
	}{
		{nil, Files{Own: DefaultPath()}, ""},
		{[]string{"/a.toml"}, Files{Own: "/a.toml", Named: true}, ""},
		{[]string{"/a"}, Files{Own: "/a", Named: true}, ""},
		{[]string{"/etc/libvirt/virtlockd.conf"}, Files{Own: DefaultPath(), Virtlockd: "/etc/libvirt/virtlockd.conf"}, ""},
		{[]string{"/v.conf", "/a.toml"}, Files{Own: "/a.toml", Named: true, Virtlockd: "/v.conf"}, ""},
		{[]string{"/a.toml", "/b.toml"}, Files{}, "/a.toml and /b.toml"},
		{[]string{"/a.conf", "/b.conf"}, Files{}, "/a.conf and /b.conf"},
	} {
		got, err := FilesOf(c.named)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%q: %v", c.named, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v", c.named, got, err)
		}
	}
}

// TestPIDFile: virtlockd's where vmlockd takes its place, and one of its own elsewhere.
func TestPIDFile(t *testing.T) {
	d := Default()
	for text, want := range map[string]string{
		"":                                    d.PIDFile,
		"run_dir = \"/run/x\"":                d.PIDFile,
		"socket = \"/x\"\nrun_dir = \"/r\"":   "/r/vmlockd.pid",
		"socket = \"/x\"\npid_file = \"/p\"":  "/p",
		"socket = \"" + d.Socket + "\"":       d.PIDFile,
		"pid_file = \"\"\nrun_dir = \"/r/y\"": d.PIDFile,
	} {
		if c, err := Parse("x", []byte(text)); err != nil || c.PIDFile != want {
			t.Errorf("%q: %q, %v, want %q", text, c.PIDFile, err, want)
		}
	}
	for key, bad := range map[string]string{"pid_file": `"rel"`, "virtlockd_conf": `"rel"`, "idle_timeout": `"500ms"`, "admin_max_clients": "0", "log.filters": `"x"`, "log.outputs": `"x"`} {
		if _, err := Parse("x", []byte(key+" = "+bad)); err == nil || !strings.HasPrefix(err.Error(), "x:1: "+key+": ") {
			t.Errorf("%s = %s: %v", key, bad, err)
		}
	}
	if c, err := Parse("x", []byte(`idle_timeout = "2147483s"`)); err != nil || time.Duration(c.IdleTimeout) != MaxIdleTimeout {
		t.Errorf("%v, %v", c.IdleTimeout, err)
	}
}

// TestSessionPaths: those of virtlockd(8), "When run as non-root".
func TestSessionPaths(t *testing.T) {
	env := map[string]string{"HOME": "/h"}
	getenv := func(key string) string { return env[key] }
	check := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	check(configDir(7, getenv), "/h/.config")
	check(runtimeDir(7, getenv), "/h/.cache")
	env["XDG_CONFIG_HOME"], env["XDG_RUNTIME_DIR"] = "/c", "/run/user/7"
	check(configDir(7, getenv), "/c")
	check(virtlockdPID(7, getenv), "/run/user/7/libvirt/virtlockd.pid")
	check(configDir(0, getenv), "/etc")
	check(virtlockdPID(0, getenv), "/run/virtlockd.pid")
}

// FuzzVirtlockdConf: no text makes a configuration that would not be taken from our own
// file, nor more warnings than it has settings.
func FuzzVirtlockdConf(f *testing.F) {
	f.Add(everyKey)
	f.Add("bogus = [1]\nmax_clients = 1; max_clients = 2")
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		var err error
		testenv.Bounded(t, 1000, len(text), func() { err = c.addVirtlockd("v", []byte(text), nil) })
		if err != nil {
			return
		}
		if list := c.problems(); len(list) > 0 || len(c.Warnings) > len(text) {
			t.Fatalf("%q: %v, %d warnings", text, list, len(c.Warnings))
		}
	})
}
