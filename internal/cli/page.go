package cli

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// page is text for people: lines and tables.
type page struct {
	strings.Builder
	colour bool
}

// The colours.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

func (p *page) paint(colour, text string) string {
	if !p.colour || colour == "" || text == "" {
		return text
	}
	return colour + text + plain
}

func (p *page) line(format string, args ...any) {
	fmt.Fprintf(&p.Builder, format+"\n", args...)
}

// table writes rows under a header, each column as wide as it has to be. A column
// without any text in a row is left out.
func (p *page) table(header []string, rows [][]string) {
	widths := make([]int, len(header))
	used := make([]bool, len(header))
	for _, r := range rows {
		for i, cell := range r {
			r[i] = clean(cell)
			used[i] = used[i] || cell != ""
			widths[i] = max(widths[i], utf8.RuneCountInString(header[i]), utf8.RuneCountInString(r[i]))
		}
	}
	write := func(cells []string, colour string) {
		var b strings.Builder
		for i, cell := range cells {
			if used[i] {
				b.WriteString(cell)
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		p.line("%s", p.paint(colour, strings.TrimRight(b.String(), " ")))
	}
	write(header, bold)
	for _, r := range rows {
		write(r, "")
	}
}

// clean makes a text harmless for a terminal, and keeps it on one line.
func clean(s string) string {
	bad := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func when(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
