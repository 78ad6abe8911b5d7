// Package libvirtconf reads the syntax of libvirt's configuration files, such as
// virtlockd.conf (libvirt's src/util/virconf.c): a name, =, and a number, a text in
// quotes or a list of those; # begins a comment. What the settings mean it does not
// know.
//
// It keeps no state, takes memory in proportion to the text only, and stops at the
// first error, which says where it is.
package libvirtconf

import (
	"bytes"
	"fmt"
	"strconv"
)

// Bounds of what is read.
const (
	// MaxSize is the largest text, in bytes. libvirt takes ten times as much.
	MaxSize = 1 << 20
	// MaxSettings and MaxList bound the settings of a text and the values of a list.
	MaxSettings = 1000
	MaxList     = 1000
	// maxName bounds a name, and maxShown what an error shows of a text, in bytes.
	maxName, maxShown = 100, 30
)

// Kind is the kind of a Value.
type Kind int

// The kinds.
const (
	Number Kind = iota
	Text
	List
)

func (k Kind) String() string {
	switch k {
	case Number:
		return "a number"
	case Text:
		return "a text in quotes"
	}
	return "a list"
}

// Value is what a name is set to. Which of the fields counts is said by Kind.
type Value struct {
	Kind   Kind
	Number int64
	Text   string
	List   []Value // numbers and texts
}

// Setting is one of a file.
type Setting struct {
	Name  string
	Line  int // from 1, where it begins
	Value Value
}

// SyntaxError is where a text is not in the syntax, and why.
type SyntaxError struct {
	Line int // from 1
	What string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.What) }

// Parse returns the settings of a text in their order; one name may be there several
// times, and libvirt takes the first. The error is a *SyntaxError.
func Parse(text []byte) ([]Setting, error) {
	p := parser{text: text, line: 1}
	if len(text) > MaxSize {
		return nil, p.wrong("the file has %d bytes, and %d are the most", len(text), MaxSize)
	}
	var list []Setting
	for {
		p.skipEmpty()
		if p.end() {
			return list, nil
		}
		if len(list) == MaxSettings {
			return nil, p.wrong("there are more than %d settings", MaxSettings)
		}
		s, err := p.setting()
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
}

type parser struct {
	text []byte
	at   int
	line int
}

func (p *parser) wrong(format string, args ...any) error {
	return &SyntaxError{Line: p.line, What: fmt.Sprintf(format, args...)}
}

func (p *parser) end() bool { return p.at >= len(p.text) }

// next is the byte that comes next, 0 at the end: what follows it is then refused
// for another reason.
func (p *parser) next() byte {
	if p.end() {
		return 0
	}
	return p.text[p.at]
}

// rest is what an error shows of what comes next.
func (p *parser) rest() string {
	rest := p.text[p.at:]
	if i := bytes.IndexAny(rest, "\r\n"); i >= 0 {
		rest = rest[:i]
	}
	if len(rest) == 0 {
		return "the end of the line"
	}
	if len(rest) > maxShown {
		return strconv.Quote(string(rest[:maxShown])) + "..."
	}
	return strconv.Quote(string(rest))
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }
func isEOL(b byte) bool   { return b == '\n' || b == '\r' }
func isDigit(b byte) bool { return b >= '0' && b <= '9' }
func isLetter(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

func (p *parser) skipBlanks() {
	for isBlank(p.next()) {
		p.at++
	}
}

func (p *parser) skipLine() {
	for !p.end() && !isEOL(p.next()) {
		p.at++
	}
}

// skipEmpty goes on to what is neither blank, nor the end of a line, nor a comment.
func (p *parser) skipEmpty() {
	for !p.end() {
		switch b := p.next(); {
		case b == '#':
			p.skipLine()
		case b == '\n':
			p.line++
			p.at++
		case isBlank(b) || b == '\r':
			p.at++
		default:
			return
		}
	}
}

func (p *parser) setting() (s Setting, err error) {
	s.Line = p.line
	from := p.at
	if !isLetter(p.next()) {
		return s, p.wrong("the name of a setting is expected, which begins with a letter, and not %s", p.rest())
	}
	for b := p.next(); isLetter(b) || isDigit(b) || b == '_'; b = p.next() {
		p.at++
	}
	if p.at-from > maxName {
		return s, p.wrong("a name has %d letters, and %d are the most", p.at-from, maxName)
	}
	s.Name = string(p.text[from:p.at])
	p.skipBlanks()
	if p.next() != '=' {
		return s, p.wrong("%s: = and a value are expected after the name, and not %s", s.Name, p.rest())
	}
	p.at++
	p.skipBlanks()
	if s.Value, err = p.value(true); err != nil {
		return s, err
	}
	p.skipBlanks()
	switch b := p.next(); {
	case p.end() || isEOL(b) || b == '#':
	case b == ';':
		p.at++
	default:
		return s, p.wrong("%s: nothing but a comment may follow the value, and not %s", s.Name, p.rest())
	}
	return s, nil
}

// value reads a number or a text, and a list where that may be one.
func (p *parser) value(list bool) (Value, error) {
	switch b := p.next(); {
	case b == '"' || b == '\'':
		return p.quoted()
	case b == '[' && list:
		return p.list()
	case b == '[':
		return Value{}, p.wrong("a list cannot be in a list")
	case isDigit(b) || b == '-' || b == '+':
		return p.number()
	}
	return Value{}, p.wrong("a value is expected, a number or a text in quotes, and not %s", p.rest())
}

func (p *parser) number() (Value, error) {
	from := p.at
	p.at++
	for isDigit(p.next()) {
		p.at++
	}
	if p.at-from > maxShown {
		return Value{}, p.wrong("a number has %d digits", p.at-from)
	}
	text := string(p.text[from:p.at])
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return Value{}, p.wrong("%q is no number, or one that is too large", text)
	}
	return Value{Kind: Number, Number: n}, nil
}

// quoted reads a text in single or double quotes, in which nothing is special, or one
// in three double quotes, which may have several lines.
func (p *parser) quoted() (Value, error) {
	quote := p.text[p.at : p.at+1]
	if bytes.HasPrefix(p.text[p.at:], []byte(`"""`)) {
		quote = p.text[p.at : p.at+3]
	}
	line := p.line
	rest := p.text[p.at+len(quote):]
	n := bytes.Index(rest, quote)
	if n < 0 || len(quote) == 1 && bytes.ContainsAny(rest[:n], "\r\n") {
		return Value{}, &SyntaxError{Line: line, What: fmt.Sprintf("the text that begins with %s has no %s at its end", p.rest(), quote)}
	}
	p.at += n + 2*len(quote)
	p.line += bytes.Count(rest[:n], []byte("\n"))
	return Value{Kind: Text, Text: string(rest[:n])}, nil
}

func (p *parser) list() (Value, error) {
	v := Value{Kind: List}
	p.at++
	for {
		p.skipEmpty()
		if p.next() == ']' {
			p.at++
			return v, nil
		}
		if len(v.List) == MaxList {
			return v, p.wrong("a list has more than %d values", MaxList)
		}
		item, err := p.value(false)
		if err != nil {
			return v, err
		}
		v.List = append(v.List, item)
		p.skipEmpty()
		switch p.next() {
		case ',':
			p.at++
		case ']':
		default:
			return v, p.wrong("a comma or ] is expected in a list, and not %s", p.rest())
		}
	}
}
