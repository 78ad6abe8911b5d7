package control

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestDocumented: docs/control-api.md has every path with its methods, every field of
// an answer or request, every kind of event, and every code of errors and warnings.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/control-api.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	headings := strings.Join(regexp.MustCompile(`(?m)^## .*$`).FindAllString(text, -1), "\n")
	w := newWorld(t, func(o *Options) { o.Settler = calm{} })
	for path, methods := range w.s.routes {
		for method := range methods {
			if !regexp.MustCompile(`(?m)^## .*\b` + method + `\b.* ` + path + `(\?|$)`).MatchString(headings) {
				t.Errorf("no heading has %s %s", method, path)
			}
		}
	}
	words := map[string]bool{}
	for _, word := range regexp.MustCompile(`[a-z_]+`).FindAllString(strings.Join(regexp.MustCompile("`[^`]+`").FindAllString(text, -1), " "), -1) {
		words[word] = true
	}
	for _, name := range kinds {
		if !words[name] {
			t.Errorf("the kind %q is missing", name)
		}
	}
	for _, v := range []any{
		Status{}, Cluster{}, Member{}, Holders{}, Holder{}, Missing{}, Identified{}, Disk{}, Line{}, Event{}, Refused{}, Waiter{},
		ReleaseRequest{}, Released{}, Settled{}, Doubt{}, SettleRequest{}, ConfirmDeadRequest{}, ConfirmedDead{},
		Drain{}, Drained{}, Returner{}, DrainRequest{}, GuardState{}, StoppedVM{}, LooseVM{}, VanishedNode{}, DLMLockspace{}, Counts{}, Warning{}, Failure{}, Error{},
	} {
		for i := range reflect.TypeOf(v).NumField() {
			f := reflect.TypeOf(v).Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" && !words[name] {
				t.Errorf("the field %q of %T is missing", name, v)
			}
		}
	}
	// Those that a Client makes are not the daemon's.
	codes := regexp.MustCompile(`(?m)^(?:\t|const )(?:Code|Warn)\w+ += "(\w+)"`)
	found := 0
	for _, file := range []string{"answer.go", "status.go", "doubt.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range codes.FindAllStringSubmatch(string(source), -1) {
			found++
			if !words[m[1]] && m[1] != CodeUnavailable && m[1] != CodeForbidden {
				t.Errorf("the code %q is missing", m[1])
			}
		}
	}
	if found < 28 {
		t.Errorf("only %d codes were looked for", found)
	}
}
