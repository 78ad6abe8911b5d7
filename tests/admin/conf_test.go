package admin_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// everyKey is a virtlockd.conf with each key that virtlockd has, as virtlockd takes it, and a file for the log.
const everyKey = `log_level = 4
log_filters = "1:rpc"
log_outputs = "1:file:%s"
max_clients = 33
admin_max_clients = 7
`

// TestVirtlockdConf: what is in virtlockd.conf is so at virtlockd, and at vmlockd with the same file, as virt-admin shows
// it, and as the log does.
func TestVirtlockdConf(t *testing.T) {
	virtAdmin(t)
	vm := newDaemon(t, "vmlockd")
	t.Cleanup(vm.endHolder)
	vm.writes("vmlockd.toml", vm.own())
	vm.writes("virtlockd.conf", fmt.Sprintf(everyKey, vm.file("log")))
	vm.start(exec.Command(vmlockd, "-f", vm.file("vmlockd.toml"), "-f", vm.file("virtlockd.conf")))
	virt := newDaemon(t, "virtlockd")
	virt.startVirtlockd(fmt.Sprintf(everyKey, virt.file("log")))

	for _, d := range []*daemon{vm, virt} {
		for server, most := range map[string]string{"virtlockd": "33", "admin": "7"} {
			if out := d.must("server-clients-info", server); !strings.Contains(out, "nclients_max        : "+most+"\n") {
				t.Errorf("%s: server %s: %s", d.name, server, out)
			}
		}
		if out := d.must("daemon-log-filters"); !strings.Contains(out, "1:*rpc*") {
			t.Errorf("%s: %s", d.name, out)
		}
		if out := d.must("daemon-log-outputs"); !strings.Contains(out, "1:file:"+d.file("log")) {
			t.Errorf("%s: %s", d.name, out)
		}
		// The filter lets connections through, and the level nothing else: both log their start, at level 2 or less.
		d.until("the log has what the filter lets through", func() error {
			text, err := os.ReadFile(d.file("log"))
			if err == nil && !strings.Contains(string(text), map[string]string{"vmlockd": "a client has connected", "virtlockd": "virNet"}[d.name]) {
				err = fmt.Errorf("%q", text)
			}
			return err
		})
	}
	text, err := os.ReadFile(vm.file("log"))
	if err != nil || strings.Contains(string(text), "vmlockd is ready") || !strings.Contains(string(text), "DEBUG") {
		t.Errorf("%v: the log:\n%s", err, text)
	}
	vm.writes("virtlockd.conf", strings.Replace(fmt.Sprintf(everyKey, vm.file("log")), "log_level = 4", "log_level = 2", 1))
	vm.restart()
	vm.until("log_level counts", func() error {
		text, err := os.ReadFile(vm.file("log"))
		if err == nil && !strings.Contains(string(text), "vmlockd is ready") {
			err = fmt.Errorf("%q", text)
		}
		return err
	})
}

// TestOptionsCount: each of virtlockd's options does what it is for, in its short and in its long form.
func TestOptionsCount(t *testing.T) {
	for form, options := range map[string][]string{
		"short": {"-v", "-t", "1", "-p", "PID", "-f", "TOML"},
		"long":  {"--verbose", "--timeout", "1", "--pid-file", "PID", "--config", "TOML"},
	} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, "vmlockd")
			t.Cleanup(d.endHolder)
			d.writes("vmlockd.toml", d.own())
			for i, o := range options {
				options[i] = strings.NewReplacer("PID", d.file("pid"), "TOML", d.file("vmlockd.toml")).Replace(o)
			}
			d.start(exec.Command(vmlockd, options...))
			c, err := net.Dial("unix", d.socket()) // so that it does not end yet
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			pid, err := os.ReadFile(d.file("pid"))
			if err != nil || strings.TrimSpace(string(pid)) != fmt.Sprint(d.cmd.Process.Pid) {
				t.Errorf("pid file: %q, %v", pid, err)
			}
			c.Close()
			<-d.done // by the timeout of one second
			if d.cmd.ProcessState.ExitCode() != 0 {
				t.Errorf("it ends with %v", d.cmd.ProcessState)
			}
			text, err := os.ReadFile(d.file("stderr"))
			if err != nil || !strings.Contains(string(text), "level=DEBUG") {
				t.Errorf("%v: nothing is logged more:\n%s", err, text)
			}
		})
	}
}
