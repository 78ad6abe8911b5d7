package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/vmlockd/vmlockd/internal/lazyregexp"
)

// Mistake is one thing that is wrong in a file.
type Mistake struct {
	File string
	Line int    // from 1; 0 if it is in no particular line
	Key  string // with its table, as in "log.level"; "" if it is about no key
	What string // what is wrong and what to write instead
}

func (m *Mistake) Error() string {
	at := m.File
	if m.Line > 0 {
		at = fmt.Sprintf("%s:%d", m.File, m.Line)
	}
	if m.Key == "" {
		return fmt.Sprintf("%s: %s", at, m.What)
	}
	return fmt.Sprintf("%s: %s: %s", at, m.Key, m.What)
}

// wrongType is how the library tells a value of the wrong type, or one where a
// table belongs; neither is a toml.ParseError. It leaves the line out of what is
// in an inline table.
var wrongType = lazyregexp.New(`^toml: (?:line (\d+) )?\(last key "(.*?)"\): (?:incompatible types: TOML value has type|type mismatch for \S+: expected table but found) (.+?)(?:; destination .*)?$`)

func mistakeOf(path string, text []byte, err error) error {
	if m := wrongType().FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		if line == 0 {
			line = lineOf(text, strings.Split(m[2], "."))
		}
		return &Mistake{File: path, Line: line, Key: m[2], What: wantedType(m[2], m[3])}
	}
	var p toml.ParseError
	if !errors.As(err, &p) {
		return &Mistake{File: path, What: err.Error()}
	}
	line := p.Position.Line
	if line == 0 && p.LastKey != "" {
		line = lineOf(text, strings.Split(p.LastKey, "."))
	}
	return &Mistake{File: path, Line: line, Key: p.LastKey, What: p.Message}
}

// wantedType says in words of TOML what belongs into a key.
func wantedType(key, given string) string {
	want := "another one"
	if t, ok := keyTypes()[key]; ok {
		want = t
	}
	return fmt.Sprintf("wrong type: this is %s, and %s is wanted", inWords(given), want)
}

// inWords is a type of Go that the library decodes to, in words of TOML.
func inWords(typ string) string {
	switch {
	case strings.HasPrefix(typ, "[]"):
		return "an array"
	case strings.HasPrefix(typ, "map["):
		return "a table"
	case typ == "string":
		return "a text"
	case typ == "int64":
		return "a whole number"
	case typ == "float64":
		return "a number with a point"
	case typ == "bool":
		return "true or false"
	}
	return typ
}

// unknownKeys is a mistake for each key that is not literally one of ours.
func unknownKeys(path string, text []byte, keys []toml.Key) (list []error) {
	types := keyTypes()
	known := slices.Sorted(maps.Keys(types))
	for _, key := range keys {
		name := key.String()
		if _, ok := types[name]; ok {
			continue
		}
		what := "there is no such key: the keys are " + strings.Join(known, ", ")
		if ours, ok := virtlockdKeys[name]; ok && ours != name {
			what = fmt.Sprintf("this is a key of virtlockd.conf: write %s here, or give the file a name that ends in %s if it is libvirt's", ours, virtlockdSuffix)
		}
		if lower := strings.ToLower(name); types[lower] != "" {
			what = "there is no such key: write " + lower + ", in small letters"
		}
		list = append(list, &Mistake{File: path, Line: lineOf(text, key), Key: name, What: what})
	}
	return list
}

// keyTypes is every key with its table, and what to write for it.
func keyTypes() map[string]string {
	keys := map[string]string{}
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for f := range t.Fields() {
			if !f.IsExported() || f.Tag.Get("toml") == "-" {
				continue
			}
			name := prefix + f.Tag.Get("toml")
			switch {
			case f.Type == reflect.TypeFor[Duration]():
				keys[name] = `a duration in quotes like "10s"`
			case f.Type.Kind() == reflect.Struct:
				keys[name] = "a table [" + name + "]"
				walk(name+".", f.Type)
			case f.Type.Kind() == reflect.Slice:
				keys[name] = "tables [[" + name + "]]"
				walk(name+".", f.Type.Elem())
			case f.Type.Kind() == reflect.Int:
				keys[name] = "a whole number without quotes"
			default:
				keys[name] = "a text in quotes"
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	return keys
}

var (
	header     = lazyregexp.New(`^\s*\[+\s*([^\]]+?)\s*\]`)
	assignment = lazyregexp.New(`^\s*([^=#\[]+?)\s*=`)
)

// lineOf finds the line that sets a key, as the library tells the place of
// syntax errors only. If no line looks like it, as for what is in an inline
// table, it is the line of the table; 0 if there is none either.
func lineOf(text []byte, key []string) int {
	for n := len(key); n > 0; n-- {
		if line := lineOfExactly(text, key[:n]); line > 0 {
			return line
		}
	}
	return 0
}

func lineOfExactly(text []byte, key []string) int {
	var table []string
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if m := header().FindStringSubmatch(line); m != nil {
			table = parts(m[1])
			if slices.Equal(table, key) {
				return n
			}
			continue
		}
		if m := assignment().FindStringSubmatch(line); m != nil && slices.Equal(slices.Concat(table, parts(m[1])), key) {
			return n
		}
	}
	return 0
}

// parts are those of a dotted key, without spaces and quotes around each.
func parts(key string) []string {
	list := strings.Split(key, ".")
	for i, p := range list {
		list[i] = strings.Trim(strings.TrimSpace(p), `"'`)
	}
	return list
}

// lineInTable finds the line that sets a key in the nth of several tables [[name]],
// n from 1; if the key is not there, that of the table, and if there is none, as
// with a list in one line, that which sets name.
func lineInTable(text []byte, name string, n int, key string) int {
	table := strings.Split(name, ".")
	at, count, found := 0, 0, 0
	for line := range strings.Lines(string(text)) {
		at++
		if m := header().FindStringSubmatch(line); m != nil {
			if count == n && found > 0 {
				return found
			}
			if slices.Equal(parts(m[1]), table) {
				if count++; count == n {
					found = at
				}
			}
			continue
		}
		if m := assignment().FindStringSubmatch(line); m != nil && count == n && found > 0 && slices.Equal(parts(m[1]), []string{key}) {
			return at
		}
	}
	if found == 0 {
		return lineOf(text, table)
	}
	return found
}
