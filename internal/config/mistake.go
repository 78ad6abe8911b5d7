package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
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

// wrongType is how the library tells a value of the wrong type, which is not a
// toml.ParseError.
var wrongType = regexp.MustCompile(`line (\d+) \(last key "(.*)"\): incompatible types: TOML value has type (\w+)`)

func mistakeOf(path string, err error) error {
	if m := wrongType.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		return &Mistake{File: path, Line: line, Key: m[2], What: wantedType(m[2], m[3])}
	}
	var p toml.ParseError
	if !errors.As(err, &p) {
		return &Mistake{File: path, What: err.Error()}
	}
	return &Mistake{File: path, Line: p.Position.Line, Key: p.LastKey, What: p.Message}
}

// wantedType says in words of TOML what belongs into a key.
func wantedType(key, given string) string {
	want := "another one"
	if t, ok := keyTypes()[key]; ok {
		want = t
	}
	return fmt.Sprintf("wrong type: this is %s, and %s is wanted", given, want)
}

func unknownKey(path string, text []byte, key toml.Key) error {
	name := key.String()
	known := make([]string, 0, 16)
	for k := range keyTypes() {
		known = append(known, k)
	}
	slices.Sort(known)
	what := "there is no such key: the keys are " + strings.Join(known, ", ")
	return &Mistake{File: path, Line: lineOf(text, name), Key: name, What: what}
}

// keyTypes is every key with its table, and what to write for it.
func keyTypes() map[string]string {
	keys := map[string]string{}
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for f := range t.Fields() {
			if !f.IsExported() {
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
	header     = regexp.MustCompile(`^\s*\[+\s*([^\]]+?)\s*\]`)
	assignment = regexp.MustCompile(`^\s*([^=#\[]+?)\s*=`)
)

// lineOf finds the line that sets a key, as the library tells the place of
// syntax errors only. 0 if no line looks like it.
func lineOf(text []byte, key string) int {
	table := ""
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if m := header.FindStringSubmatch(line); m != nil {
			table = m[1] + "."
			if m[1] == key {
				return n
			}
			continue
		}
		if m := assignment.FindStringSubmatch(line); m != nil {
			full := strings.ReplaceAll(table+m[1], `"`, "")
			if full == strings.ReplaceAll(key, `"`, "") {
				return n
			}
		}
	}
	return 0
}

// lineInTable finds the line that sets a key in the nth of several tables [[name]],
// n from 1; if the key is not there, that of the table, and if there is none, as
// with a list in one line, that which sets name.
func lineInTable(text []byte, name string, n int, key string) int {
	at, count, found := 0, 0, 0
	for line := range strings.Lines(string(text)) {
		at++
		if m := header.FindStringSubmatch(line); m != nil {
			if count == n && found > 0 {
				return found
			}
			if m[1] == name {
				if count++; count == n {
					found = at
				}
			}
			continue
		}
		if m := assignment.FindStringSubmatch(line); m != nil && count == n && found > 0 && strings.Trim(m[1], `"`) == key {
			return at
		}
	}
	if found == 0 {
		return lineOf(text, name)
	}
	return found
}
