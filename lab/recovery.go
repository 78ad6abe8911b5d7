package lab

import (
	"context"
	"regexp"
	"strings"
)

// The kernel's words of the recovery of a lockspace (ls_recover and do_ls_recovery in fs/dlm/recoverd.c, 6.1). What is interrupted
// waits for dlm_controld, and not for another kernel.
var (
	recoveryBegins = regexp.MustCompile(`^dlm: (\S+): dlm_recover \d+$`)
	recoveryEnds   = regexp.MustCompile(`^dlm: (\S+): (dlm_recover \d+ (generation \d+ done|error )|do_ls_recovery \d+ )`)
	spaceLeft      = regexp.MustCompile(`^dlm: (\S+): (leaving the lockspace group|release_lockspace)`)
	bootBegins     = regexp.MustCompile(`^===== node \d+: boot `)
)

// Recovery returns what the kernel of the node has said of the recovery of a lockspace that it has begun and not ended, line by
// line, or nothing if it is in none. In its last line it says what it does; one that does not change for as long as 20 s is of
// a kernel that waits for another one for ever: it sends again after 5 s what gets lost.
func (n *Node) Recovery(ctx context.Context, lockspace string) ([]string, error) {
	b, err := n.Log(ctx, "console")
	if err != nil {
		return nil, err
	}
	return recovery(string(b), lockspace), nil
}

func recovery(console, lockspace string) (said []string) {
	ofSpace := func(re *regexp.Regexp, line string) bool {
		m := re.FindStringSubmatch(line)
		return m != nil && m[1] == lockspace
	}
	for line := range strings.Lines(console) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case ofSpace(recoveryBegins, line):
			said = []string{line}
		case ofSpace(recoveryEnds, line), ofSpace(spaceLeft, line), bootBegins.MatchString(line):
			said = nil
		case said != nil && strings.HasPrefix(line, "dlm: "+lockspace+": "):
			said = append(said, line)
		}
	}
	return said
}
