package lab

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// stateOf asks a node where its cluster stands; each answer becomes one line, and what hangs says nothing.
const stateOf = `for c in 'dlm_tool ls -n' 'dlm_tool status' 'vmlockctl status'; do command -v ${c%% *} >/dev/null || continue; echo "$c: $(timeout 3 $c 2>&1 | tr -s '[:space:]' ' ')"; done`

// stateLine is how much of an answer is kept, in bytes.
const stateLine = 900

// state says in a few lines how the nodes are, for whoever has nothing but the end of a test's output: the logs say what was,
// and a recovery that hangs has written nothing at all.
func (l *Lab) state(ctx context.Context) []string {
	var lines []string
	for _, n := range l.Nodes() {
		add := func(text string) {
			if len(text) > stateLine {
				text = text[:stateLine] + "..."
			}
			lines = append(lines, n.Name()+": "+text)
		}
		st, err := n.Status(ctx)
		if err != nil {
			add(err.Error())
			continue
		}
		if st.State != NodeRunning {
			add("is " + string(st.State))
			continue
		}
		if b, err := n.Log(ctx, "console"); err == nil {
			if said := lastWith(string(b), "dlm: ", 3); len(said) > 0 {
				add("the kernel's last words of the DLM: " + strings.Join(said, " | "))
			}
		}
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		res, err := n.Shell(ctx, stateOf)
		cancel()
		if err != nil {
			add(fmt.Sprintf("answers no command: %v", err))
			continue
		}
		for line := range strings.Lines(res.Stdout) {
			add(strings.TrimSpace(line))
		}
	}
	return lines
}

// lastWith returns the last n lines of a text that begin with a prefix.
func lastWith(text, prefix string, n int) (last []string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			last = append(last, strings.TrimSpace(line))
			last = last[max(0, len(last)-n):]
		}
	}
	return last
}
