package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const conffile = "../../packaging/vmlockd.toml"

// uncommented is the file that the package installs with each key in force: what
// begins with "# " is text, and any other comment is a key.
func uncommented(t *testing.T) (whole, text string) {
	t.Helper()
	b, err := os.ReadFile(conffile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") {
			line = line[1:]
		}
		text += line
	}
	return string(b), text
}

// ofRoot is Default for the system's daemon, whoever runs the test.
func ofRoot() Config {
	c := Default()
	c.RunDir = filepath.Join(runtimeDir(0, os.Getenv), "vmlockd")
	c.Socket = filepath.Join(runtimeDir(0, os.Getenv), "libvirt", "virtlockd-sock")
	c.AdminSocket = filepath.Join(runtimeDir(0, os.Getenv), "libvirt", "virtlockd-admin-sock")
	c.ControlSocket = filepath.Join(c.RunDir, controlName)
	c.AuditLog = filepath.Join(logDir(0, os.Getenv), "vmlockd", "audit.log")
	c.PIDFile = virtlockdPID(0, os.Getenv)
	c.VirtlockdConf = filepath.Join(configDir(0, os.Getenv), "libvirt", "virtlockd.conf")
	return c
}

// TestConffile: the configuration file of the package changes nothing, names every
// key, and tells the defaults that are in force.
func TestConffile(t *testing.T) {
	whole, text := uncommented(t)
	c, err := Parse("vmlockd.toml", []byte(whole))
	if err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("as it is installed: %+v, %v", c, err)
	}
	c, err = Parse("vmlockd.toml", []byte(text))
	if err != nil {
		t.Fatalf("with every key in force: %v", err)
	}
	if len(c.Guard.VM) == 0 || len(c.Identity.Rules) == 0 {
		t.Error("there is no example of [[guard.vm]] or of [[identity.rule]]")
	}
	c.Guard.VM, c.Identity = nil, Identity{}
	if want := ofRoot(); !reflect.DeepEqual(c, want) {
		t.Errorf("the file says %+v\nand the defaults are %+v", c, want)
	}
	for key, what := range keyTypes() {
		if strings.HasPrefix(what, "a table") { // written with dots
			continue
		}
		if lineOfExactly([]byte(text), strings.Split(key, ".")) == 0 {
			t.Errorf("the file does not name %s", key)
		}
	}
}
