package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
)

// askTimeout bounds a question to the daemon, which answers in about a second.
const askTimeout = 10 * time.Second

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is one run of vmlockctl.
type app struct {
	Streams
	version string
	json    bool
	socket  string
	config  string
	named   bool // the configuration was named on the command line
	colour  bool

	status int
}

const rootHelp = `vmlockctl shows who holds which disk, and does what an operator has to do.

It talks to vmlockd on this host through its control socket, which only root
and the daemon's own user may use.`

// Main runs vmlockctl with these arguments and returns its exit status.
func Main(args []string, version string, s Streams) int {
	if len(args) > 0 && args[0] == shimName {
		return shim(args[1:])
	}
	a := &app{Streams: s, version: version, colour: wantsColour(s.Out)}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	if cmd, err := root.ExecuteC(); err != nil {
		// Commands keep their errors to themselves: this one is about the command line.
		a.json = a.json || slices.Contains(args, "--json")
		a.fail(usage("%v; try 'vmlockctl --help'", err))
		if cmd.Name() == "run" {
			a.status += runOffset
		}
	}
	return a.status
}

// Root is the command with all its parts, for what describes them.
func Root() *cobra.Command { return (&app{}).root() }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "vmlockctl",
		Short:         "Show and change what vmlockd does",
		Long:          rootHelp + "\n\n" + exitHelp(exits),
		Version:       a.version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.named = cmd.Flags().Changed("config")
		},
		DisableAutoGenTag: true,
	}
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "write JSON, errors too")
	f.StringVar(&a.socket, "socket", "", "control `socket` of vmlockd; default: what its configuration says")
	f.StringVarP(&a.config, "config", "f", config.DefaultPath(), "configuration `file` of vmlockd; the default one may be absent")
	root.Flags().BoolP("version", "V", false, "print the version and exit")
	root.AddCommand(a.statusCommand(), a.lsCommand(), a.whoCommand(), a.identifyCommand(), a.watchCommand(),
		a.runCommand(), a.releaseCommand(), a.settleCommand(), a.drainCommand(), a.confirmDeadCommand(), a.doctorCommand())
	return root
}

// run makes a cobra function of a command's own. A command's error never gets to
// cobra, so that what does is about the command line.
func (a *app) run(f func(ctx context.Context, c *control.Client, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) {
	return func(cmd *cobra.Command, args []string) {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		c, err := a.client()
		if err == nil {
			defer c.Close()
			err = f(ctx, c, cmd, args)
		}
		if err != nil {
			a.fail(err)
		}
	}
}

// client finds the daemon's control socket.
func (a *app) client() (*control.Client, error) {
	if a.socket == "" {
		c, err := config.Load(a.config, !a.named)
		if err != nil {
			return nil, usage("%v", err)
		}
		a.socket = c.ControlSocket
	}
	return control.NewClient(a.socket), nil
}

// ask gives a question its time.
func ask[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return f(ctx)
}

// fail says an error and sets the exit status.
func (a *app) fail(err error) {
	f := asFailure(err)
	a.status = f.status
	if a.json {
		a.writeJSON(a.Out, control.Failure{Error: f.err})
		return
	}
	fmt.Fprintf(a.Err, "vmlockctl: %s\n", clean(f.err.Message))
}

func (a *app) writeJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // a reader that has left is nobody to complain to
}

// show writes an answer: v as JSON, or what text makes of it.
func (a *app) show(v any, text func(*page)) {
	if a.json {
		a.writeJSON(a.Out, v)
		return
	}
	p := &page{colour: a.colour}
	text(p)
	_, _ = io.WriteString(a.Out, p.String())
}

// incomplete says on stderr which nodes did not answer, and sets the status.
func (a *app) incomplete(missing []control.Missing) {
	if len(missing) == 0 {
		return
	}
	a.status = exitIncomplete
	if a.json {
		return
	}
	for _, m := range missing {
		who := "other hosts"
		if m.NodeID != 0 {
			who = nodeText(m.NodeID, m.Node)
		}
		fmt.Fprintf(a.Err, "vmlockctl: incomplete, %s: %s\n", clean(who), clean(m.Error))
	}
}

func nodeText(id uint32, name string) string {
	if id == 0 {
		return name
	}
	if name == "" {
		return fmt.Sprintf("node %d", id)
	}
	return fmt.Sprintf("%s (node %d)", name, id)
}

func wantsColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(f)
}
