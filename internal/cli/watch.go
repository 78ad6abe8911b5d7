package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/control"
)

// comeBack is how long watch waits for a daemon that restarts.
const (
	comeBack = 15 * time.Second
	lookBack = 100 * time.Millisecond
)

func (a *app) watchCommand() *cobra.Command {
	var history bool
	var count int
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show what happens to locks on this host, as it happens",
		Long: `Show grants, refusals, releases and whatever else happens to locks of this
host, as it happens, until it is interrupted. With --json each line is one JSON
object. A line says how many events were missed if there were more than could be
shown. When vmlockd restarts, watch goes on, and says so.

` + exitHelp(map[int]string{
			exitOK: "interrupted, or as many events were shown as were wanted", exitFailed: exits[exitFailed], exitUsage: exits[exitUsage], exitNoDaemon: exits[exitNoDaemon],
		}),
		Args: cobra.NoArgs,
		Run: a.run(func(ctx context.Context, c *control.Client, _ *cobra.Command, _ []string) error {
			if count < 0 {
				return usage("--count is %d: use 0, for no end, or more", count)
			}
			return (&watcher{a: a, c: c, history: history, left: count, endless: count == 0}).run(ctx)
		}),
	}
	cmd.Flags().BoolVar(&history, "history", false, "begin with what is remembered")
	cmd.Flags().IntVarP(&count, "count", "n", 0, "end after this `number` of events")
	return cmd
}

type watcher struct {
	a       *app
	c       *control.Client
	history bool
	left    int
	endless bool
	last    uint64 // number of the last event that was shown or missed
}

// errEnough ends a watch that has seen as many events as were wanted.
var errEnough = failed(exitOK, "", "")

func (w *watcher) run(ctx context.Context) error {
	q := url.Values{}
	if w.history {
		q.Set("since", strconv.Itoa(0))
	}
	started, lost := "", time.Time{} // of the daemon that was seen last; since when none is
	for {
		err := w.c.Watch(ctx, q, func(now string, since uint64) {
			switch {
			case started == "":
			case started == now:
				w.note("the connection was lost; what happened meanwhile follows, as far as it is remembered")
			default:
				// What a new daemon remembers is what happened since it came.
				w.note("vmlockd was restarted; what happened meanwhile is not shown")
			}
			started, lost, w.last = now, time.Time{}, since
		}, w.line)
		switch {
		case err == nil || ctx.Err() != nil || err == errEnough:
			return nil
		case started == "" || code(err) != control.CodeUnavailable:
			return err
		}
		q.Set("since", strconv.FormatUint(w.last, 10))
		q.Set("started", started)
		if lost.IsZero() {
			lost = time.Now()
		}
		if time.Since(lost) > comeBack {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookBack):
		}
	}
}

// note says something that is no event.
func (w *watcher) note(text string) {
	if !w.a.json {
		fmt.Fprintf(w.a.Err, "vmlockctl: %s\n", text)
	}
}

func (w *watcher) line(l control.Line) error {
	w.last += l.Missed
	if l.Event != nil {
		w.last = l.Seq
	}
	if w.a.json {
		text, err := json.Marshal(l)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w.a.Out, "%s\n", text); err != nil {
			return err
		}
	} else {
		p := &page{colour: w.a.colour}
		p.event(l)
		if _, err := fmt.Fprint(w.a.Out, p.String()); err != nil {
			return err
		}
	}
	if l.Event == nil || w.endless {
		return nil
	}
	if w.left--; w.left == 0 {
		return errEnough
	}
	return nil
}

// eventColours are those of kinds that an operator should look at.
var eventColours = map[string]string{
	"granted": green, "refused": yellow, "forced": red, "lost": red, "release_failed": red,
	"owner_ending": yellow, "owner_end_failed": red, "owner_unverified": yellow,
	"owner_gone": yellow,
}

func (p *page) event(l control.Line) {
	if l.Missed > 0 {
		p.line("%s", p.paint(yellow, fmt.Sprintf("(%s missed)", plural(int(l.Missed), "event was", "events were"))))
	}
	e := l.Event
	if e == nil {
		return
	}
	text := fmt.Sprintf("%s %s %s (pid %d)", e.Time.UTC().Format("2006-01-02T15:04:05.000Z"),
		p.paint(eventColours[e.Kind], fmt.Sprintf("%-19s", clean(e.Kind))), clean(orNameless(e.VM)), e.PID)
	if e.Mode != "" {
		text += " " + clean(e.Mode)
	}
	if e.Lockspace != "" {
		text += " in " + clean(e.Lockspace)
	}
	if e.Resource != "" {
		text += " " + clean(e.Resource)
	}
	if e.Locks > 0 {
		text += ", had " + plural(e.Locks, "lock", "locks")
	}
	if e.Reason != "" {
		text += ": " + clean(e.Reason)
	}
	p.line("%s", text)
}

func orNameless(vm string) string {
	if vm == "" {
		return "an owner without a name"
	}
	return vm
}
