package archtest

// What others write, and where it may be used. A path stands for all packages
// below it.
const (
	bbolt      = "go.etcd.io/bbolt"
	cobra      = "github.com/spf13/cobra"
	prometheus = "github.com/prometheus/client_golang"
	purego     = "github.com/ebitengine/purego"
	systemd    = "github.com/coreos/go-systemd/v22"
	toml       = "github.com/BurntSushi/toml"
	xsync      = "golang.org/x/sync"
	xsys       = "golang.org/x/sys"
)

// fakeclock is the one place that uses testing/synctest.
const fakeclock = "internal/fakeclock"

// testLibraries may be imported by tests and by packages that are for tests.
var testLibraries = []string{
	"github.com/anishathalye/porcupine",
	"github.com/google/go-cmp",
	"github.com/prometheus/common", // reads what Prometheus reads
	"github.com/rogpeppe/go-internal",
	"go.uber.org/goleak",
	"pgregory.net/rapid",
}

// room is what the packages of a place may import, beside the standard library.
type room struct {
	// place is a directory; with /... at its end, all below it too. The most
	// exact place counts.
	place string
	// ours are directories of this module, theirs are paths of other modules.
	ours, theirs []string
	// forTests is for packages that only tests use: these may import the test
	// libraries too. anything is for those which may also import all of ours.
	forTests, anything bool
	// pure is for packages that make no system calls: these may not import outside.
	pure bool
}

// outside is the part of the standard library by which a package could reach the
// system.
var outside = []string{"os/...", "io/ioutil", "net/...", "syscall/...", "unsafe", "plugin", "runtime/cgo"}

// rooms is the house. A request goes from the left to the right, from rpc to a
// backend, and a room knows only rooms to its right: so a row may name only
// places in rows below it.
var rooms = []room{
	// Tests of the whole, and what they run.
	{place: "tests/...", theirs: []string{xsync, xsys}, anything: true},
	{place: "bench", theirs: []string{xsys}, anything: true},
	{place: "internal/difftest/...", theirs: []string{xsync, xsys}, anything: true},
	{place: "internal/archtest"},
	{place: "cmd/demo", ours: []string{"lab"}, theirs: []string{cobra}},
	{place: "lab/cmd/...", ours: []string{"lab", "lab/internal/..."}, theirs: []string{cobra, xsys}},
	{place: "lab", ours: []string{"lab/internal/..."}, theirs: []string{xsync, xsys}},
	{place: "lab/internal/agent", ours: []string{"lab/internal/wire"}, theirs: []string{xsys}},
	{place: "lab/internal/supervisor", ours: []string{"lab/internal/wire"}, theirs: []string{xsys}},
	{place: "lab/internal/wire"},

	// Programs: flags and exit codes, no logic. vmlockd is also the program of the
	// holder process, which must not get as far as anything else.
	{place: "cmd/vmlockd", ours: []string{"internal/daemon", "internal/cli", "internal/config", "internal/holder", "internal/logs"}, theirs: []string{cobra}},
	{place: "cmd/vmlockctl", ours: []string{"internal/cli"}, theirs: []string{cobra}},

	// The one place that knows all parts.
	{place: "internal/daemon", ours: []string{
		"internal/adminprogram", "internal/audit", "internal/backend/cluster", "internal/backend/local", "internal/closer", "internal/config",
		"internal/control", "internal/domstatus", "internal/failpoint", "internal/guard", "internal/holder", "internal/identity", "internal/journal", "internal/locking",
		"internal/lockprogram", "internal/logs", "internal/metrics", "internal/owner", "internal/peers",
		"internal/rpc", "internal/virtlockd", "corosync", "dlm", "dlm/controld",
	}, theirs: []string{systemd, xsync, xsys}},
	{place: "internal/cli", ours: []string{"internal/config", "internal/control", "internal/doctor", "internal/locking", "internal/lockprogram", "internal/rpc", "dlm/controld"}, theirs: []string{cobra, xsys}},
	{place: "internal/doctor", ours: []string{"internal/config", "internal/domstatus", "dlm/controld"}, theirs: []string{xsys}},

	// From the socket to the rules.
	{place: "internal/lockprogram", ours: []string{"internal/rpc", "internal/locking"}},
	{place: "internal/adminprogram", ours: []string{"internal/rpc", "internal/locking"}},
	{place: "internal/control", ours: []string{"internal/rpc", "internal/locking", "internal/peers", "internal/guard"}},
	{place: "internal/metrics", ours: []string{"internal/locking"}, theirs: []string{prometheus}},
	{place: "internal/rpc", ours: []string{"internal/stack"}, theirs: []string{xsys}},

	// What fills the ports of the rules.
	{place: "internal/backend/cluster", ours: []string{"internal/locking", "internal/table", "internal/failpoint", "dlm", "dlm/controld"}, theirs: []string{xsys}},
	{place: "internal/backend/local", ours: []string{"internal/locking", "internal/failpoint", "internal/holder", "internal/stack"}, theirs: []string{systemd, xsys}},
	{place: "internal/guard", ours: []string{"internal/owner", "internal/locking", "internal/failpoint", "corosync", "dlm/controld"}, theirs: []string{xsys}},
	{place: "internal/owner", ours: []string{"internal/locking"}, theirs: []string{xsys}},
	{place: "internal/journal", ours: []string{"internal/locking", "internal/failpoint"}, theirs: []string{bbolt, xsys}},
	{place: "internal/holder", ours: []string{"internal/failpoint", "internal/inherited"}, theirs: []string{xsys}},
	{place: "internal/closer", ours: []string{"internal/failpoint", "internal/inherited", "dlm"}, theirs: []string{xsys}},
	{place: "internal/peers", ours: []string{"corosync"}, pure: true}, // it has no port of its own
	{place: "internal/virtlockd", ours: []string{"internal/locking"}, theirs: []string{xsys}},
	{place: "internal/audit", ours: []string{"internal/failpoint"}},
	{place: "internal/config", ours: []string{"internal/identity", "internal/lazyregexp", "internal/libvirtconf", "internal/logs"}, theirs: []string{toml}},
	{place: "internal/identity", ours: []string{"internal/lazyregexp"}, theirs: []string{xsys}},
	{place: "internal/logs/logstest", forTests: true},
	{place: "internal/logs", theirs: []string{systemd}},

	// The rules: pure, no system calls.
	{place: "internal/locking/locktest", ours: []string{"internal/locking"}, forTests: true},
	{place: "internal/locking", ours: []string{"internal/table"}, pure: true},

	// Libraries for everybody.
	{place: "internal/lazyregexp"},
	{place: "internal/libvirtconf", pure: true},
	{place: "internal/domstatus", pure: true},
	{place: "internal/inherited", theirs: []string{xsys}},
	{place: "internal/failpoint", theirs: []string{xsys}},
	{place: fakeclock, ours: []string{"internal/testenv"}, forTests: true},
	{place: "internal/testenv", forTests: true},
	{place: "dlm/dlmtest/...", ours: []string{"dlm", "dlm/internal/abi", "dlm/dlmtest/..."}, forTests: true},
	{place: "dlm/clusterflock", ours: []string{"dlm"}}, // the example of its README.md
	{place: "dlm", ours: []string{"dlm/internal/abi", "internal/table"}, theirs: []string{xsys}},
	{place: "dlm/controld/controldtest", ours: []string{"dlm/controld", "dlm/controld/internal/wire"}, theirs: []string{xsys}, forTests: true},
	{place: "dlm/controld", ours: []string{"dlm/controld/internal/wire"}, theirs: []string{xsys}},
	{place: "dlm/controld/internal/wire"},
	{place: "dlm/internal/abi"},
	{place: "corosync/corosynctest/...", ours: []string{"corosync", "corosync/corosynctest/..."}, forTests: true},
	{place: "corosync", theirs: []string{purego, xsys}},
	{place: "internal/table", pure: true}, // beneath all: a way to keep things
	{place: "internal/stack", pure: true},
}
