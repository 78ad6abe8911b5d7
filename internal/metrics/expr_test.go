package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What PromQL has beside names of metrics, as far as it is used here.
var (
	functions = []string{"rate", "increase", "histogram_quantile", "vector", "label_values"}
	operators = []string{"sum", "max", "min", "count", "and", "or", "unless", "by"}
	// Prometheus itself adds these labels, and a metric.
	ownLabels = []string{"job", "instance"}

	token   = regexp.MustCompile(`"[^"]*"|\[[^\]]*\]|[a-zA-Z_:][a-zA-Z0-9_:]*|[0-9.]+|=~|!~|!=|==|>=|<=|[^\s]`)
	name    = regexp.MustCompile(`^[a-zA-Z_:]`)
	grouped = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// expression checks a PromQL expression against what is shown: names of
// metrics, their labels, and the values of labels.
func expression(text string, all map[string]family) error {
	tokens := token.FindAllString(text, -1)
	if strings.Count(text, "(") != strings.Count(text, ")") || strings.Count(text, "{") != strings.Count(text, "}") {
		return fmt.Errorf("brackets do not match")
	}
	for _, m := range grouped.FindAllStringSubmatch(text, -1) {
		for l := range strings.SplitSeq(m[1], ",") {
			if l = strings.TrimSpace(l); !someHas(tokens, all, l) {
				return fmt.Errorf("no metric in it has the label %q", l)
			}
		}
	}
	found := 0
	for i := 0; i < len(tokens); i++ {
		switch t := tokens[i]; {
		case !name.MatchString(t):
		case t == "by":
			i += slices.Index(tokens[i:], ")")
		case slices.Contains(functions, t), slices.Contains(operators, t):
			if t == "label_values" { // of Grafana: a metric, then a label
				end := i + slices.Index(tokens[i:], ")")
				tokens = slices.Delete(tokens, end-1, end)
			}
		default:
			f, ok := lookUp(all, t)
			if !ok {
				return fmt.Errorf("there is no metric %q", t)
			}
			found++
			if i+1 < len(tokens) && tokens[i+1] == "{" {
				end := i + slices.Index(tokens[i:], "}")
				if err := f.matches(tokens[i+2 : end]); err != nil {
					return fmt.Errorf("%s: %w", t, err)
				}
				i = end
			}
		}
	}
	if found == 0 {
		return fmt.Errorf("there is no metric in it")
	}
	return nil
}

func someHas(tokens []string, all map[string]family, label string) bool {
	return slices.Contains(ownLabels, label) || slices.ContainsFunc(tokens, func(t string) bool {
		f, ok := lookUp(all, t)
		return ok && f.labels[label] != nil
	})
}

// lookUp finds a metric, also one of the series of a histogram.
func lookUp(all map[string]family, name string) (family, bool) {
	if name == "up" {
		return family{}, true
	}
	f, ok := all[name]
	if ok {
		return f, f.kind != "histogram"
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, cut := strings.CutSuffix(name, suffix); cut && all[base].kind == "histogram" {
			f = family{kind: "counter", labels: map[string]map[string]bool{}}
			for l, values := range all[base].labels {
				f.labels[l] = values
			}
			if suffix == "_bucket" {
				f.labels["le"] = map[string]bool{"+Inf": true}
			}
			return f, true
		}
	}
	return family{}, false
}

// matches checks label matchers: name, operator, value, and a comma between two.
func (f family) matches(tokens []string) error {
	for ; len(tokens) >= 3; tokens = tokens[min(4, len(tokens)):] {
		label, op, value := tokens[0], tokens[1], strings.Trim(tokens[2], `"`)
		if slices.Contains(ownLabels, label) {
			continue
		}
		if f.labels[label] == nil {
			return fmt.Errorf("it has no label %q", label)
		}
		match := regexp.MustCompile("^(?:" + value + ")$")
		if op == "=" || op == "!=" {
			match = regexp.MustCompile("^" + regexp.QuoteMeta(value) + "$")
		}
		hit := false
		for v := range f.labels[label] {
			hit = hit || match.MatchString(v)
		}
		if !hit {
			return fmt.Errorf("%s is never %q", label, value)
		}
	}
	if len(tokens) > 0 {
		return fmt.Errorf("cannot read %q", tokens)
	}
	return nil
}

// What the tests below are for has to be found by them.
func TestExpression(t *testing.T) {
	all := families(t, New(everything()))
	for text, want := range map[string]string{
		`vmlockd_locks_lost > 0`: "", `sum by (le) (rate(vmlockd_lock_release_duration_seconds_bucket{job=~"$job"}[5m]))`: "",
		`vmlockd_lock_refusals_total{reason=~"unavailable_.*", job="x"}`: "", `process_open_fds / process_max_fds`: "", `label_values(vmlockd_build_info, job)`: "",
		`vmlockd_lock_lost > 0`: "no metric", `lost`: "no metric", `rate(vmlockd_lock_grants[5m])`: "no metric", `vmlockd_lock_acquire_duration_seconds`: "no metric",
		`sum by (kind) (vmlockd_lock_grants_total)`: "the label", `vmlockd_lock_grants_total{kind="x"}`: "no label", `vmlockd_lock_grants_total{mode="x"}`: "never",
		`vmlockd_lock_refusals_total{reason=~"unavail"}`: "never", `sum(vmlockd_owners`: "brackets", `vector(1)`: "no metric in it", `vmlockd_locks_lost_bucket`: "no metric",
	} {
		err := expression(text, all)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../docs/grafana/vmlockd.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Panels     []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, RefID string }
		}
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	all := families(t, New(everything()))
	ids, exprs := map[int]bool{}, 0
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: its id, title or place is wrong", p.ID, p.Title)
		}
		ids[p.ID] = true
		if len(p.Targets) == 0 && p.Type != "row" {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			exprs++
			if err := expression(target.Expr, all); err != nil {
				t.Errorf("panel %q: %s: %v", p.Title, target.Expr, err)
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			if err := expression(v.Query, all); err != nil {
				t.Errorf("variable %s: %v", v.Name, err)
			}
		}
	}
	if exprs < 20 || d.UID == "" {
		t.Errorf("%d expressions in %q", exprs, d.Title)
	}
}

func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("../../docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	all := families(t, New(everything()))
	rules := regexp.MustCompile(`(?m)^      - alert: (\w+)\n        expr: (.+)\n(?:        for: \d+[smh]\n)?        labels: \{severity: (?:critical|warning|info)\}\n        annotations:\n          summary: "([^"\n]+)"\n`).
		FindAllStringSubmatch(string(text), -1)
	if n := strings.Count(string(text), "- alert:"); len(rules) != n || n < 10 {
		t.Errorf("%d alerts, of which %d can be read", n, len(rules))
	}
	for _, r := range rules {
		if err := expression(r[2], all); err != nil {
			t.Errorf("%s: %s: %v", r[1], r[2], err)
		}
	}
}
