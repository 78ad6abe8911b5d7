package admin_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// step is a command, and what virt-admin prints then.
type step struct {
	command string // words; ID stands for a client of server virtlockd
	want    string // plain, with its status if that is not 0
	theirs  string // what it prints with virtlockd, if that is not the same
}

const (
	failed       = "\nstatus 1"
	noLogging    = "error: Unable to change daemon logging settings\n"
	noLimits     = "error: Unable to change server's client-related configuration limits\n"
	noPool       = "error: Unable to change server workerpool parameters\n"
	unauthWords  = "error: invalid argument: The overall maximum number of clients waiting for authentication must not be less than the overall maximum number of clients"
	emptyPool    = "minWorkers     : 0\nmaxWorkers     : 0\nnWorkers       : 0\nfreeWorkers    : 0\nprioWorkers    : 0\njobQueueDepth  : 0"
	noTLS        = "error: Unable to update server's tls related files.\nerror: internal error: no tls service found, unable to update tls files" + failed
	noServer     = "error: Server not found: No server named 'nosuch'" + failed
	clientHeader = " Id   Transport   Connected since\n"
)

func limitsOf(most, now, unauth int) string {
	return fmt.Sprintf("nclients_max        : %d\nnclients            : %d\nnclients_unauth_max : %d\nnclients_unauth     : 0", most, now, unauth)
}

// steps are everything that virt-admin has for such a daemon. One client is connected
// to the server virtlockd, and has registered.
var steps = []step{
	{"version", "Compiled against library: libvirt 9.0.0\nUsing library: libvirt 9.0.0\nRunning against daemon: 9.0.0", ""},
	{"uri", "virtlockd+unix:///system?socket=DIR/libvirt/virtlockd-admin-sock", ""},
	{"server-list", "Id   Name\nadmin\nvirtlockd", ""},
	{"server-threadpool-info virtlockd", emptyPool, ""},
	{"server-threadpool-info admin", emptyPool, ""},
	{"server-threadpool-info nosuch", noServer, ""},
	{"server-threadpool-set virtlockd --max-workers 0", "", ""},
	{"server-threadpool-set virtlockd --min-workers 3", noPool + "error: invalid argument: minWorkers cannot be larger than maxWorkers" + failed, ""},
	{"server-threadpool-set virtlockd --max-workers 3", noPool + "error: invalid argument: maxWorkers must not be switched from zero to non-zero and vice versa" + failed, ""},
	{"server-threadpool-set virtlockd --priority-workers 0", "", ""},
	{"server-threadpool-set virtlockd --priority-workers 3", noPool + "error: invalid argument: prioWorkers must be 0: vmlockd has no pool of threads, every connection is served by itself" + failed,
		"nothing"}, // threads that nobody uses
	{"server-threadpool-set nosuch --max-workers 0", noServer, ""},

	{"client-list virtlockd", clientHeader + " @ID    unix        TIME", ""},
	{"client-list nosuch", noServer, ""},
	{"client-info virtlockd ID", "id             : @ID\nconnection_time: TIME\ntransport      : unix\nreadonly       : no\nunix_user_id   : @UID\n" + userLine() +
		"unix_group_id  : @GID\n" + groupLine() + "unix_process_id: PID", ""},
	{"client-info virtlockd 9999", "error: Client not found: No client with matching ID '9999'" + failed, ""},
	{"client-info nosuch 1", noServer, ""},

	{"server-clients-info virtlockd", limitsOf(200, 1, 200), ""},
	{"server-clients-info admin", limitsOf(5000, 1, 5000), ""},
	{"server-clients-info nosuch", noServer, ""},
	{"server-clients-set virtlockd --max-clients 50 --max-unauth-clients 20", "", ""},
	{"server-clients-info virtlockd", limitsOf(50, 1, 20), ""},
	{"server-clients-set virtlockd --max-clients 10", noLimits + unauthWords + failed, ""},
	{"server-clients-set virtlockd --max-unauth-clients 100", noLimits + unauthWords + failed, ""},
	{"server-clients-set virtlockd --max-unauth-clients 0", "", ""},
	{"server-clients-set virtlockd --max-clients 0", noLimits + "error: invalid argument: the maximum number of clients is 1 to 1000000 here, and not 0" + failed,
		"nothing"}, // and serves nobody any more
	{"server-clients-set virtlockd --max-clients 40", "", ""},
	{"server-clients-info virtlockd", limitsOf(40, 1, 0), ""},
	{"server-clients-set admin --max-clients 7 --max-unauth-clients 1", "", ""},
	{"server-clients-info admin", limitsOf(7, 1, 1), ""},
	{"server-clients-set nosuch --max-clients 7", noServer, ""},

	{"server-update-tls virtlockd", noTLS, ""},
	{"server-update-tls nosuch", noServer, ""},

	{"daemon-log-filters", " Logging filters:", ""},
	{"daemon-log-filters --filters 1:rpc", "", ""},
	{"daemon-log-filters", " Logging filters: 1:*rpc*", ""},
	{"daemon-log-filters --filters 4:util_2:+lock:x", "", ""},
	{"daemon-log-filters", " Logging filters: 4:*util* 2:*lock*", ""},
	{"daemon-log-filters --filters 9:x", noLogging + "error: invalid argument: Invalid priority '9' for filter '9:x'" + failed, ""},
	{"daemon-log-filters --filters x", noLogging + "error: invalid argument: Malformed format for filter 'x'" + failed, ""},
	{"daemon-log-filters --filters 1:", noLogging + "error: invalid argument: Invalid match string ''" + failed, ""},
	{"daemon-log-filters", " Logging filters: 4:*util* 2:*lock*", ""},
	{"daemon-log-filters --filters ", "", ""},
	{"daemon-log-filters", " Logging filters:", ""},
	{"daemon-log-outputs", " Logging outputs: 3:stderr", ""},
	{"daemon-log-outputs --outputs 1:file:DIR/log", "", ""},
	{"daemon-log-outputs", " Logging outputs: 1:file:DIR/log", ""},
	{"daemon-log-outputs --outputs 4:stderr_3:file:DIR/log", "", ""},
	{"daemon-log-outputs", " Logging outputs: 4:stderr 3:file:DIR/log", ""},
	{"daemon-log-outputs --outputs 1:stderr_3:stderr", "", ""},
	{"daemon-log-outputs", " Logging outputs: 3:stderr", ""},
	{"daemon-log-outputs --outputs 4:journald", "", ""},
	{"daemon-log-outputs", " Logging outputs: 4:journald", ""},
	{"daemon-log-outputs --outputs 4:syslog:x", "", ""},
	{"daemon-log-outputs", " Logging outputs: 4:syslog:x", ""},
	{"daemon-log-outputs --outputs 9:stderr", noLogging + "error: invalid argument: Invalid log priority '9' for log output '9:stderr'" + failed, ""},
	{"daemon-log-outputs --outputs x", noLogging + "error: invalid argument: Malformed format for log output 'x'" + failed, ""},
	{"daemon-log-outputs --outputs 1:file", noLogging + "error: invalid argument: Log output '1:file' does not meet the format requirements for destination type 'file'" + failed, ""},
	{"daemon-log-outputs --outputs 1:nosuch", noLogging + "error: invalid argument: Invalid log destination 'nosuch' for log output '1:nosuch'" + failed, ""},
	{"daemon-log-outputs --outputs 1:file:/nosuch/x", noLogging + "error: failed to open /nosuch/x: No such file or directory" + failed, ""},
	{"daemon-log-outputs --outputs 1:file:DIR/a_2:file:DIR/b_4:syslog:x_3:file:DIR/a", "", ""},
	{"daemon-log-outputs", " Logging outputs: 2:file:DIR/b 4:syslog:x 3:file:DIR/a", ""},
	{"daemon-log-outputs --outputs 1:file:a", noLogging + "error: invalid argument: Log output '1:file:a' has no absolute path: begin it with /" + failed,
		"nothing"}, // in the daemon's directory, wherever that is
	{"daemon-log-outputs --outputs ", "", ""},
	{"daemon-log-outputs", " Logging outputs: 3:stderr", ""},

	{"daemon-timeout --timeout 1000", "", ""},
	{"daemon-timeout --timeout 4294967295", "", ""},
	{"daemon-timeout --timeout 0", "", ""},

	{"client-disconnect nosuch 1", noServer, ""},
	{"client-disconnect virtlockd 9999", "error: Client not found: No client with matching ID '9999'" + failed, ""},
	{"client-disconnect virtlockd ID", "Client '@ID' disconnected", ""},
}

func userLine() string {
	if os.Geteuid() == 0 {
		return "unix_user_name : root\n"
	}
	return ""
}

func groupLine() string {
	if os.Getegid() == 0 {
		return "unix_group_name: root\n"
	}
	return ""
}

// play carries out the steps and checks what is printed.
func play(t *testing.T, d *daemon) {
	t.Helper()
	c, err := lockprogram.Dial(t.Context(), d.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// As if of a virtual machine that this process is, without locks.
	if err := c.Register(t.Context(), locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "web"}); err != nil {
		t.Fatal(err)
	}
	var id string
	d.until("the client is the only one", func() error {
		ids := d.clients("virtlockd")
		if len(ids) != 1 {
			return fmt.Errorf("there are %v", ids)
		}
		id = ids[0]
		return nil
	})
	for _, s := range steps {
		words := strings.Split(strings.ReplaceAll(s.command, "DIR", d.dir), " ")
		for i, w := range words {
			words[i] = strings.ReplaceAll(w, "_", " ") // a blank within a word
			if w == "ID" {
				words[i] = id
			}
		}
		out, status := d.run(words...)
		out = d.plain(out)
		if s.command == "server-list" {
			out = withoutOrder(out)
		}
		if status != 0 {
			out += fmt.Sprintf("\nstatus %d", status)
		}
		want := strings.NewReplacer("@ID", id, "@UID", strconv.Itoa(os.Geteuid()), "@GID", strconv.Itoa(os.Getegid())).Replace(s.want)
		if d.name == "virtlockd" && s.theirs != "" {
			want = strings.TrimPrefix(s.theirs, "nothing")
		}
		if out != want {
			t.Errorf("%s: %s:\n%s\nwant\n%s", d.name, s.command, out, want)
		}
	}
	// Who was disconnected is gone, and sees the end.
	d.until("nobody is left", func() error {
		if out := d.plain(d.must("client-list", "virtlockd")); out != strings.TrimSuffix(clientHeader, "\n") {
			return errors.New(out)
		}
		return nil
	})
	if err := c.Register(context.Background(), locking.Owner{PID: int32(os.Getpid()), ID: 1}); err == nil {
		t.Errorf("%s: a client that was disconnected is served", d.name)
	}
}

// withoutOrder is a list of servers without their order, which virtlockd leaves to
// chance.
func withoutOrder(list string) string {
	var names []string
	for _, l := range strings.Split(list, "\n") {
		names = append(names, strings.TrimLeft(l, " 0123456789"))
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// TestCommands: every command of virt-admin prints what it should.
func TestCommands(t *testing.T) {
	virtAdmin(t)
	t.Parallel()
	play(t, startVmlockd(t))
}

// TestCommandsOfVirtlockd: and that is what it prints with virtlockd, but for the
// differences that the steps name. So is what the steps say of virtlockd.
func TestCommandsOfVirtlockd(t *testing.T) {
	virtAdmin(t)
	t.Parallel()
	play(t, startVirtlockd(t))
}
