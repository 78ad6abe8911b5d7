package doctor

import (
	"slices"
	"strings"
)

// unitDirs is where systemd looks for units, the first one first (systemd.unit(5)).
var unitDirs = []string{
	"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system",
}

// unit is a systemd unit with its drop-ins.
type unit struct {
	path   string // of the main file; "" if there is none
	masked bool
	values map[string][]setting // by "Section.Key", in order
}

// last is the value of a setting that has one; ok says that it is set.
func (u unit) last(key string) (s setting, ok bool) {
	list := u.values[key]
	if len(list) == 0 {
		return setting{}, false
	}
	return list[len(list)-1], true
}

// names reports whether a list of words has one of them.
func (u unit) names(key, word string) bool {
	for _, s := range u.values[key] {
		if slices.Contains(strings.Fields(s.text), word) {
			return true
		}
	}
	return false
}

// readUnit reads a unit as systemd would; a unit that does not exist has no path.
func readUnit(s System, name string) (unit, error) {
	u := unit{values: map[string][]setting{}}
	for _, dir := range unitDirs {
		p := sysPath(dir, name)
		if to, err := s.Readlink(p); err == nil && to == "/dev/null" {
			u.path, u.masked = p, true
			return u, nil
		}
		text, err := s.ReadFile(p, maxConf)
		if absent(err) {
			continue
		}
		if err != nil {
			return u, err
		}
		u.path, u.masked = p, len(text) == 0
		parseUnit(text, u.values)
		break
	}
	if u.path == "" {
		return u, nil
	}
	// A drop-in of a name hides those of later directories with that name.
	dropIns := map[string]string{}
	for _, dir := range slices.Backward(unitDirs) {
		names, err := list(s, sysPath(dir, name+".d"))
		if err != nil {
			return u, err
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".conf") {
				dropIns[n] = sysPath(dir, name+".d", n)
			}
		}
	}
	var names []string
	for n := range dropIns {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		text, err := s.ReadFile(dropIns[n], maxConf)
		if err != nil {
			return u, err
		}
		parseUnit(text, u.values)
	}
	return u, nil
}

// parseUnit adds what systemd.syntax(7) says. An empty value forgets the earlier
// ones of that key.
func parseUnit(text []byte, into map[string][]setting) {
	where, held := "", ""
	n := 0
	for raw := range strings.Lines(string(text)) {
		n++
		line := strings.TrimSpace(raw)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		line = held + line
		held = ""
		if before, ok := strings.CutSuffix(line, `\`); ok && len(before) < maxConf {
			held = before + " "
			continue
		}
		if line[0] == '[' {
			where = strings.Trim(line, "[]")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		key = where + "." + strings.TrimSpace(key)
		if value = strings.TrimSpace(value); value == "" {
			delete(into, key)
			continue
		}
		into[key] = append(into[key], setting{value, n})
	}
}

// enabled reports whether some target, or another unit, has a link to start it.
func enabled(s System, name string) (bool, error) {
	for _, dir := range unitDirs {
		names, err := list(s, dir)
		if err != nil {
			return false, err
		}
		for _, n := range names {
			if !strings.HasSuffix(n, ".wants") && !strings.HasSuffix(n, ".requires") {
				continue
			}
			if _, err := s.Readlink(sysPath(dir, n, name)); err == nil {
				return true, nil
			}
		}
	}
	return false, nil
}
