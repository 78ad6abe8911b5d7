package libvirtconf

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestParse(t *testing.T) {
	const text = "# the file that libvirt ships has comments only\r\n" +
		"log_level = 3\n" +
		"\n" +
		"  log_filters=\"1:locking 4:object # no comment\"   # one\n" +
		"list = [ \"a\", # first\n 'b',\n]; x9 = -7\n" +
		"long = \"\"\"two\nlines \"quoted\"\"\"\"\"\n" +
		"last = +5"
	if got, err := Parse([]byte(text)); err == nil {
		t.Fatalf("three quotes and two more were taken: %+v", got)
	}
	got, err := Parse([]byte(strings.Replace(text, `"""""`, `"""`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	want := []Setting{
		{"log_level", 2, Value{Kind: Number, Number: 3}},
		{"log_filters", 4, Value{Kind: Text, Text: "1:locking 4:object # no comment"}},
		{"list", 5, Value{Kind: List, List: []Value{{Kind: Text, Text: "a"}, {Kind: Text, Text: "b"}}}},
		{"x9", 7, Value{Kind: Number, Number: -7}},
		{"long", 8, Value{Kind: Text, Text: "two\nlines \"quoted"}},
		{"last", 10, Value{Kind: Number, Number: 5}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestRefuses: what the parser of libvirt 9.0 refuses too, but for what says "bound".
func TestRefuses(t *testing.T) {
	for _, c := range []struct {
		text string
		line int
		what string
	}{
		{"\n\nmax_clients", 3, "max_clients: = and a value are expected"},
		{"max_clients =", 1, "the end of the line"},
		{"max_clients = x", 1, `not "x"`},
		{"a = 1\nmax_clients = 5 x", 2, "nothing but a comment may follow"},
		{"max_clients = '3", 1, "no ' at its end"},
		{"a = \"x\ny\"", 1, "no \" at its end"},
		{"a = \"\"\"x\ny", 1, `no """ at its end`},
		{"x.y = 1", 1, "x: = and a value"},
		{"; a = 1", 1, "begins with a letter"},
		{"9a = 1", 1, "begins with a letter"},
		{"a = 99999999999999999999", 1, "too large"},
		{"a = -", 1, "no number"},
		{"a = [ 1\n 2 ]", 2, "a comma or ]"},
		{"a = [ 1,\n", 2, "a value is expected"},
		{"a = [ [1] ]", 1, "bound: a list cannot be in a list"},
		{"[table]\n", 1, "begins with a letter"},
		{strings.Repeat("a", maxName+1) + "=1", 1, "bound: are the most"},
		{"a=" + strings.Repeat("0", maxShown) + "1", 1, "bound: digits"},
		{"a=[" + strings.Repeat("1,", MaxList+1) + "]", 1, "bound: more than 1000 values"},
		{strings.Repeat("a=1\n", MaxSettings+1), MaxSettings + 1, "bound: more than 1000 settings"},
		{strings.Repeat("#", MaxSize+1), 1, "bound: are the most"},
	} {
		_, err := Parse([]byte(c.text))
		var e *SyntaxError
		if !errors.As(err, &e) || e.Line != c.line || !strings.Contains(e.What, strings.TrimPrefix(c.what, "bound: ")) {
			t.Errorf("%.40q: %v, want line %d with %q", c.text, err, c.line, c.what)
		}
	}
}

// FuzzParse: whatever comes, it ends with settings within the bounds, or with an error
// in a line of the text, of a size that does not depend on it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a=1", "a='x'\n#c\nb=[1,\"2\"]", "a=\"\"\"\n\"\"\"", "a=[", "a=\"", "\r\n;a", "a=-\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		lines := 1 + strings.Count(string(text), "\n")
		var list []Setting
		var err error
		testenv.Bounded(t, 1000, len(text), func() { list, err = Parse(text) })
		if err != nil {
			var e *SyntaxError
			if !errors.As(err, &e) || e.Line < 1 || e.Line > lines || len(e.What) > 1000 || list != nil {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		size, last := 0, 1
		for _, s := range list {
			if s.Name == "" || len(s.Name) > maxName || s.Line < last || s.Line > lines || len(s.Value.List) > MaxList {
				t.Fatalf("%q: %+v", text, s)
			}
			last = s.Line
			size += len(s.Name) + len(s.Value.Text)
			for _, v := range s.Value.List {
				size += len(v.Text)
				if v.Kind == List {
					t.Fatalf("%q: a list in a list", text)
				}
			}
		}
		if len(list) > MaxSettings || size > len(text) {
			t.Fatalf("%q: %d settings with %d bytes", text, len(list), size)
		}
	})
}
