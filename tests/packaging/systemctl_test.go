package packaging_test

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// notified is a program for a node that listens as systemd does for a unit of Type=notify, and prints what it is told.
const notified = `use IO::Socket::UNIX; $| = 1; unlink $ARGV[0];
my $s = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $ARGV[0]) or die $!; print "listens\n";
while (defined $s->recv(my $m, 65536)) { print "$m\n" } die $!`

// systemctl does what systemd would do with units that are installed in a node, as far as it is about how and with what
// a service starts: its programs, arguments and environment, its directories, its capabilities, and that a start is over
// when the service says so. It knows nothing of order, conditions, and of what needs cgroups or seccomp.
func systemctl(ctx context.Context, n *lab.Node, verb string, units []string) error {
	for _, unit := range units {
		if unit == "libvirtd" && verb == "restart" { // the lab's own
			s := n.Service(lab.ServiceLibvirt)
			if err := s.Stop(ctx); err != nil {
				return err
			}
			if err := s.Start(ctx); err != nil {
				return err
			}
			continue
		}
		text, err := n.ReadFile(ctx, "/usr/lib/systemd/system/"+unit+".service")
		if err != nil {
			return fmt.Errorf("unit %s: %w", unit, err)
		}
		switch verb {
		case "enable":
			if !strings.Contains(string(text), "\n[Install]\nWantedBy=") {
				return fmt.Errorf("unit %s cannot be enabled", unit)
			}
		case "stop", "restart", "start":
			status, err := n.Service(unit).Status(ctx)
			runs := err == nil && status.State == lab.ProcessRunning
			if runs && verb != "start" {
				if err := n.Service(unit).Stop(ctx); err != nil {
					return err
				}
				runs = false
			}
			if !runs && verb != "stop" {
				if err := startUnit(ctx, n, unit, parseUnit(string(text))); err != nil {
					return fmt.Errorf("unit %s: %w", unit, err)
				}
			}
		default:
			return fmt.Errorf("nobody here knows systemctl %s", verb)
		}
	}
	return nil
}

func startUnit(ctx context.Context, n *lab.Node, unit string, s map[string][]string) error {
	script := "set -e\n"
	for _, file := range s["EnvironmentFile"] {
		file = strings.TrimPrefix(file, "-")
		script += fmt.Sprintf("[ ! -e %[1]s ] || . %[1]s\n", file)
	}
	for key, in := range map[string]string{"RuntimeDirectory": "/run", "LogsDirectory": "/var/log"} {
		for _, dir := range s[key] {
			script += fmt.Sprintf("mkdir -p -m %s %s\n", strings.Join(s[key+"Mode"], ""), path.Join(in, dir))
		}
	}
	if pre := s["ExecStartPre"]; len(pre) > 0 {
		script += strings.Join(pre, " ") + "\n"
	}
	script += "exec"
	if caps := s["CapabilityBoundingSet"]; len(caps) > 0 {
		script += " setpriv --bounding-set=-all"
		for _, c := range caps {
			script += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
		}
		if strings.Join(s["NoNewPrivileges"], "") == "yes" {
			script += " --no-new-privs"
		}
	}
	script += " " + strings.Join(s["ExecStart"], " ") + "\n"

	if t := strings.Join(s["Type"], ""); t != "notify" {
		return fmt.Errorf("nobody here knows Type=%s", t)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	socket := "/run/notify-" + unit
	listens, err := n.Start(ctx, "notify-"+unit, "perl", "-e", notified, socket)
	if err != nil { // it goes on when the service has ended
		listens = n.Service("notify-" + unit)
	}
	told := func(line string) int {
		log, err := listens.Log(ctx)
		if err != nil {
			return 0
		}
		return strings.Count("\n"+string(log), "\n"+line+"\n")
	}
	if err := lab.WaitFor(ctx, socket, func(context.Context) (bool, error) { return told("listens") > 0, nil }); err != nil {
		return err
	}
	before := told("READY=1")
	service, err := n.StartEnv(ctx, unit, []string{"NOTIFY_SOCKET=" + socket}, "/bin/sh", "-c", script)
	if err != nil {
		return err
	}
	err = lab.WaitFor(ctx, "READY=1", func(ctx context.Context) (bool, error) {
		if told("READY=1") > before {
			return true, nil
		}
		status, err := service.Status(ctx)
		if err == nil && status.State != lab.ProcessRunning {
			err = fmt.Errorf("it has ended: %+v", status)
		}
		return false, err
	})
	if err != nil {
		log, _ := service.Log(ctx)
		err = fmt.Errorf("%w\n%s", err, log)
	}
	return err
}
