package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/internal/holder"
)

// options are the command line.
type options struct {
	backend string
	only    string
	json    string
	tables  string
	vmlockd string
	against string
	profile string
	logs    string
	use     string // of uses; all if empty
	rounds  int
	counts  string
	window  time.Duration
	guard   string // guard.mode in the lab
	inside  bool   // in a node of the lab
}

// wants says whether a part is to be measured.
func (o *options) wants(part string) bool {
	if o.only == "" {
		return true
	}
	for p := range strings.SplitSeq(o.only, ",") {
		if p == part {
			return true
		}
	}
	return false
}

// The parts, for --only.
const (
	partHeld    = "held"
	partDeath   = "death"
	partPairs   = "pairs"
	partHang    = "hang"
	partStart   = "start"
	partEndings = "endings"
	partRecords = "records"
)

func (o *options) countList() ([]int, error) {
	most := 15000
	if o.backend == "local" {
		most = 100_000
	}
	list, err := growing(o.counts, most)
	if err != nil {
		err = fmt.Errorf("--locks %w", err)
	}
	return list, err
}

// growing reads numbers with commas, from 1 to most, each greater than the one before.
func growing(text string, most int) (list []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > most || len(list) > 0 && n <= list[len(list)-1] {
			return nil, fmt.Errorf("%s: growing numbers from 1 to %d", text, most)
		}
		list = append(list, n)
	}
	return list, nil
}

func main() {
	holder.Main() // with --profile this program is the daemon, and so its holder
	if len(os.Args) == 4 && os.Args[1] == ownCommand {
		exit(own(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 3 && os.Args[1] == emptyCommand {
		exit(empty(os.Args[2]))
	}
	if len(os.Args) == 5 && os.Args[1] == profileCommand {
		exit(profiled(os.Args[2], os.Args[4]))
	}
	var o options
	flag.StringVar(&o.backend, "backend", "all", "local, cluster (needs root) or all")
	flag.StringVar(&o.only, "only", "", "parts, with commas: held (restart, re-exec, memory), death, pairs, hang (clients beside files that hang), start (of a daemon, and its memory), endings (clients beside an owner that is being ended), records (who holds a lock), dlm (beside the bare DLM), recovery (after a power cut), curves (how a pair grows with nodes, locks and owners), sanlock (beside it); all if empty")
	flag.StringVar(&o.json, "json", "", "`file` for the results")
	flag.StringVar(&o.tables, "markdown", "", "`file` for the tables of docs/performance.md")
	flag.StringVar(&o.vmlockd, "vmlockd", "", "the vmlockd `program` to measure, linked statically; built if empty")
	flag.StringVar(&o.against, "against", "", "another vmlockd `program`, with which the first takes turns in the parts pairs and hang: that of before a change")
	flag.StringVar(&o.profile, "profile", "", "`file` for a profile of the processor time of vmlockd while pairs are measured, and with .allocs behind its name for one of its allocations; slows it down")
	flag.StringVar(&o.logs, "logs", "", "`directory` for the logs of the lab")
	flag.StringVar(&o.use, "pairs", "", "the one kind of clients whose pairs are measured, as the tables name it, such as \"8 new\"; all if empty")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each measure, 1 to 100")
	flag.StringVar(&o.counts, "locks", "100,1000,10000", "how many locks are held")
	flag.StringVar(&o.guard, "guard", "off", "guard.mode of vmlockd in the lab: off, auto, freeze or kill")
	flag.DurationVar(&o.window, "window", time.Second, "length of a round of pairs, at most 1m")
	flag.BoolVar(&o.inside, "inside", false, "measure the backend cluster here, in a node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	exit(run(ctx, &o))
}

// runTimeout bounds a run of all parts, which takes most of an hour.
const runTimeout = 3 * time.Hour

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, o *options) error {
	if flag.NArg() > 0 || o.rounds < 1 || o.rounds > 100 || o.window > time.Minute || o.backend != "local" && o.backend != "cluster" && o.backend != "all" {
		flag.Usage()
		return errors.New("the command line is wrong")
	}
	if o.use != "" && !slices.ContainsFunc(uses, func(u use) bool { return u.String() == o.use }) {
		return fmt.Errorf("--pairs %q: one of %v", o.use, uses)
	}
	if _, err := o.countList(); err != nil {
		return err
	}
	for name := range curvePoints {
		if _, err := points(name); err != nil {
			return err
		}
	}
	if err := prepare(); err != nil {
		return err
	}
	if o.inside {
		return inside(ctx, o)
	}
	work, err := os.MkdirTemp("", "vmlockd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if o.vmlockd == "" {
		o.vmlockd = filepath.Join(work, "vmlockd")
		if err := build(ctx, o.vmlockd, "github.com/vmlockd/vmlockd/cmd/vmlockd"); err != nil {
			return err
		}
	}
	r := &report{Machine: thisMachine(), Begin: time.Now().UTC().Truncate(time.Second), Missing: []string{}}
	var errs []error
	for _, b := range []struct {
		name    string
		measure func(context.Context, *options, *report, string) error
	}{{"local", local}, {"cluster", cluster}} {
		if o.backend == b.name || o.backend == "all" {
			if err := b.measure(ctx, o, r, work); err != nil {
				errs = append(errs, fmt.Errorf("backend %s: %w", b.name, err))
			}
		}
	}
	// What was measured before something failed has cost its time as well.
	for _, err := range errs {
		r.Missing = append(r.Missing, err.Error())
	}
	r.Took, r.LoadEnd = time.Since(r.Begin).Round(time.Second).String(), load()
	r.print(os.Stdout)
	if o.tables != "" {
		errs = append(errs, r.markdown(o.tables))
	}
	if o.json != "" {
		errs = append(errs, r.write(o.json))
	}
	return errors.Join(errs...)
}

// build builds a program of this module, linked statically, for nodes of the lab too.
func build(ctx context.Context, path, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// progress is for people; it goes where the results do not.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().UTC().Format("15:04:05"), fmt.Sprintf(format, args...))
}
