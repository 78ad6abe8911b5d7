package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vmlockd/vmlockd/internal/identity"
)

// Identity is the table [identity].
type Identity struct {
	// Rules say of disks what cannot be found out: [[identity.rule]], the first that
	// matches counts. At most maxRules.
	Rules []Rule `toml:"rule"`
	rules []identity.Rule
}

// Rule is a table [[identity.rule]]; see identity.RuleText.
type Rule struct {
	Path  string `toml:"path"`
	Type  string `toml:"type"`
	Scope string `toml:"scope"`
	Name  string `toml:"name"`
}

// maxRules bounds the rules: each is compared with a path for each lock.
const maxRules = 1000

// List is the rules, checked.
func (i Identity) List() []identity.Rule { return i.rules }

// check makes the list, or says what is wrong.
func (i *Identity) check(path string, text []byte) (all []error) {
	const key = "identity.rule"
	if len(i.Rules) > maxRules {
		return []error{&Mistake{File: path, Line: lineOf(text, strings.Split(key, ".")), Key: key, What: fmt.Sprintf("there are %d rules: use up to %d", len(i.Rules), maxRules)}}
	}
	for n, written := range i.Rules {
		mistake := func(part, what string) {
			all = append(all, &Mistake{File: path, Line: lineInTable(text, key, n+1, part), Key: key + "." + part, What: fmt.Sprintf("rule %d: %s", n+1, what)})
		}
		r, err := identity.NewRule(identity.RuleText(written))
		var wrong *identity.RuleError
		if errors.As(err, &wrong) {
			mistake(wrong.Key, wrong.What)
			continue
		}
		for earlier, e := range i.rules {
			if e.Shadows(r) {
				part := "path"
				if written.Path == "" {
					part = "type"
				}
				mistake(part, fmt.Sprintf("an earlier rule (number %d of those without a mistake) matches all that this one does, and the first counts: move this one before it, or remove it", earlier+1))
				break
			}
		}
		i.rules = append(i.rules, r)
	}
	return all
}
