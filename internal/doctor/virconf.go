package doctor

import (
	"fmt"
	"strings"
)

// virConf is a configuration file of libvirt, such as qemu.conf: text and numbers
// by their key. Of lists only the line is kept. The last setting of a key counts.
type virConf map[string]setting

// parseVirConf reads the grammar of libvirt's src/util/virconf.c: key = value, where
// a value is a number, a text in quotes, or a list in brackets, perhaps over several
// lines; # begins a comment.
func parseVirConf(text []byte) (virConf, error) {
	c := virConf{}
	p := virParser{text: string(text), line: 1}
	for {
		p.space(true)
		if p.text == "" {
			return c, nil
		}
		line := p.line
		key := p.take(func(b byte) bool {
			return b == '_' || b == '.' || b == '-' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
		})
		p.space(false)
		if key == "" || !strings.HasPrefix(p.text, "=") {
			return nil, fmt.Errorf("line %d: this is not \"key = value\"", line)
		}
		p.text = p.text[1:]
		p.space(false)
		value, err := p.value()
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", line, key, err)
		}
		c[key] = setting{value, line}
		p.space(false)
		if p.text != "" && p.text[0] != '\n' {
			return nil, fmt.Errorf("line %d: there is something behind the value of %s", p.line, key)
		}
	}
}

type virParser struct {
	text string
	line int
}

func (p *virParser) take(ok func(byte) bool) string {
	n := 0
	for n < len(p.text) && ok(p.text[n]) {
		n++
	}
	s := p.text[:n]
	p.text = p.text[n:]
	return s
}

// space skips blanks and comments, and with lines also ends of lines.
func (p *virParser) space(lines bool) {
	for p.text != "" {
		switch b := p.text[0]; {
		case b == ' ' || b == '\t' || b == '\r':
			p.text = p.text[1:]
		case b == '#':
			p.take(func(b byte) bool { return b != '\n' })
		case b == '\n' && lines:
			p.line++
			p.text = p.text[1:]
		default:
			return
		}
	}
}

func (p *virParser) value() (string, error) {
	if p.text == "" {
		return "", fmt.Errorf("there is no value")
	}
	switch b := p.text[0]; {
	case b == '"' || b == '\'':
		quote := p.text[:1]
		if strings.HasPrefix(p.text, `"""`) {
			quote = `"""`
		}
		text, rest, ok := strings.Cut(p.text[len(quote):], quote)
		if !ok || len(quote) == 1 && strings.Contains(text, "\n") {
			return "", fmt.Errorf("the text has no closing quote")
		}
		p.line += strings.Count(text, "\n")
		p.text = rest
		return text, nil
	case b == '[':
		return "", p.list()
	case b == '-' || b >= '0' && b <= '9':
		return p.take(func(b byte) bool { return b == '-' || b >= '0' && b <= '9' }), nil
	}
	return "", fmt.Errorf("the value is neither a number, nor a text in quotes, nor a list")
}

func (p *virParser) list() error {
	p.text = p.text[1:]
	for {
		p.space(true)
		switch {
		case p.text == "":
			return fmt.Errorf("the list has no closing bracket")
		case p.text[0] == ']':
			p.text = p.text[1:]
			return nil
		case p.text[0] == '[':
			return fmt.Errorf("a list within a list")
		case p.text[0] == ',':
			p.text = p.text[1:]
			continue
		}
		if _, err := p.value(); err != nil {
			return err
		}
	}
}
