package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of corosync.conf, far beyond what corosync itself takes.
const (
	maxSections = 4096
	maxDepth    = 16
)

// section is a section of corosync.conf, or the whole file.
type section struct {
	name   string
	line   int
	values map[string]setting // the last one counts
	subs   []*section
}

// setting is a value and the line that sets it.
type setting struct {
	text string
	line int
}

// sub is the first section of a name; one without anything if there is none.
func (s *section) sub(name string) *section {
	for _, c := range s.subs {
		if c.name == name {
			return c
		}
	}
	return &section{}
}

// device is the quorum device; without a line if there is none.
func (s *section) device() *section { return s.sub("quorum").sub("device") }

// lookup is a setting of a section that may be written in several parts.
func (s *section) lookup(name, key string) (found setting) {
	for _, c := range s.subs {
		if v, ok := c.values[key]; ok && c.name == name {
			found = v
		}
	}
	return found
}

// yes reads corosync's truth.
func yes(text string) bool { return text == "1" || text == "yes" || text == "on" || text == "true" }

// parseCorosync reads corosync.conf as corosync does (exec/coroparse.c): a line
// opens a section if it has a brace, or else is "key: value", or else closes one.
func parseCorosync(text []byte) (*section, error) {
	root := &section{values: map[string]setting{}}
	stack := []*section{root}
	n, sections := 0, 0
	for raw := range strings.Lines(string(text)) {
		n++
		line := strings.TrimSpace(raw)
		if line == "" || line[0] == '#' {
			continue
		}
		top := stack[len(stack)-1]
		if name, rest, ok := strings.Cut(line, "{"); ok {
			name = strings.TrimSpace(name)
			sections++
			switch {
			case strings.TrimSpace(rest) != "":
				return nil, fmt.Errorf("line %d: there is something behind the brace: begin a new line there", n)
			case name == "":
				return nil, fmt.Errorf("line %d: a section without a name", n)
			case len(stack) > maxDepth || sections > maxSections:
				return nil, fmt.Errorf("line %d: too many sections", n)
			}
			s := &section{name: name, line: n, values: map[string]setting{}}
			top.subs = append(top.subs, s)
			stack = append(stack, s)
			continue
		}
		if key, value, ok := strings.Cut(line, ":"); ok {
			top.values[strings.TrimSpace(key)] = setting{strings.TrimSpace(value), n}
			continue
		}
		if line != "}" {
			return nil, fmt.Errorf("line %d: %q opens and closes no section and is not \"key: value\"", n, clip(line, 60))
		}
		if len(stack) == 1 {
			return nil, fmt.Errorf("line %d: a closing brace too many", n)
		}
		stack = stack[:len(stack)-1]
	}
	if len(stack) > 1 {
		return nil, fmt.Errorf("the section %q of line %d is not closed", stack[len(stack)-1].name, stack[len(stack)-1].line)
	}
	return root, nil
}

// coroNode is a node of the list of nodes.
type coroNode struct {
	id   int // 0 if it has none
	name string
	line int
}

func (s *section) nodes() (list []coroNode) {
	for _, l := range s.subs {
		if l.name != "nodelist" {
			continue
		}
		for _, n := range l.subs {
			if n.name == "node" {
				id, _ := strconv.Atoi(n.values["nodeid"].text)
				list = append(list, coroNode{max(id, 0), n.values["name"].text, n.line})
			}
		}
	}
	return list
}

// dlmConf is what dlm.conf(5) says about fencing.
type dlmConf struct {
	values map[string]setting // the settings of the form key=value
	agents []agent
}

// agent is a program that fences, as it is named there.
type agent struct {
	program string
	line    int
}

func parseDLM(text []byte) dlmConf {
	c := dlmConf{values: map[string]setting{}}
	n := 0
	for raw := range strings.Lines(string(text)) {
		n++
		f := strings.Fields(raw)
		switch {
		case len(f) == 0 || f[0][0] == '#':
		case f[0] == "fence_all" && len(f) > 1:
			c.agents = append(c.agents, agent{f[1], n})
		case f[0] == "device" && len(f) > 2:
			c.agents = append(c.agents, agent{f[2], n})
		case len(f) == 1 && strings.Contains(f[0], "="):
			key, value, _ := strings.Cut(f[0], "=")
			c.values[key] = setting{value, n}
		}
	}
	return c
}
