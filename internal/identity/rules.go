package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/lazyregexp"
)

// Rule says what cannot be found out. The zero Rule matches nothing; see NewRule.
type Rule struct {
	text    RuleText
	scope   Scope
	pattern *regexp.Regexp // nil: any path
}

// RuleText is a rule as it is written.
type RuleText struct {
	// Path is an absolute path with * for anything without /, ** for anything, and ?
	// for one character but /. It is compared with Identity.Path, or is "".
	Path string
	// Type is compared with Identity.Type, or is "".
	Type string
	// Scope is "cluster" or "host".
	Scope string
	// Name is a name with variables: {path}, {rest} (what of the path the first * or ?
	// and all behind it stand for), {base} (the path's last part) and {inode}. "" means
	// the name that was found out, and if there is none that counts in the cluster,
	// the path.
	Name string
}

// RuleError is what is wrong with a RuleText.
type RuleError struct {
	Key  string // "path", "type", "scope" or "name"
	What string // what is wrong and what to write instead
}

func (e *RuleError) Error() string { return e.Key + ": " + e.What }

const (
	maxPattern  = 4095
	maxTemplate = 1024
)

var (
	typeName = lazyregexp.New(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	variable = lazyregexp.New(`\{[^{}]*\}`)
)

// NewRule checks a rule. Every error is a *RuleError.
func NewRule(t RuleText) (Rule, error) {
	wrong := func(key, format string, args ...any) (Rule, error) {
		return Rule{}, &RuleError{key, fmt.Sprintf(format, args...)}
	}
	r := Rule{text: t}
	switch {
	case t.Path == "" && t.Type == "":
		return wrong("path", `the rule would be for every disk: say which ones it is for, for example path = "/srv/vm/**" or type = "lvm"`)
	case t.Path != "" && !strings.HasPrefix(t.Path, "/"):
		return wrong("path", "%q is not an absolute path: begin it with /", t.Path)
	case len(t.Path) > maxPattern || strings.ContainsRune(t.Path, 0):
		return wrong("path", "no file can have a path of %d bytes, or with a NUL byte in it", len(t.Path))
	case !utf8.ValidString(t.Path):
		// A regular expression would not take it, and no settings file can have it.
		return wrong("path", "%q is not UTF-8: use ? for each byte of a character that is not", t.Path)
	case strings.Contains(t.Path, "***"):
		return wrong("path", "%q has three * in a row: use * for anything without a /, or ** for anything", t.Path)
	case t.Path != "" && path.Clean(t.Path) != t.Path:
		return wrong("path", "%q can match nothing, as paths are compared without links: write %q", t.Path, path.Clean(t.Path))
	case strings.HasPrefix(t.Path, "/dev/disk/"), strings.HasPrefix(t.Path, "/dev/dm-"):
		return wrong("path", "%q can match nothing, as paths are compared without links: write what vmlockctl identify shows for such a disk, /dev/mapper/NAME for one of the device mapper and else the kernel's name, or its type", t.Path)
	case strings.ContainsAny(t.Path, `[]{}\`):
		return wrong("path", `%q has one of [ ] { } \, which stand for nothing here: use * or ? for such a character`, t.Path)
	case t.Type != "" && !typeName().MatchString(t.Type):
		return wrong("type", "%q is no kind of device or file system: use one of %s, or a file system's type as in /proc/self/mountinfo", t.Type, strings.Join(DeviceTypes(), ", "))
	}
	if what := deadDevice(t); what != nil {
		return Rule{}, what
	}
	switch t.Scope {
	case Cluster.String():
	case Host.String():
		r.scope = Host
		if t.Name != "" {
			return wrong("name", `with scope = "host" a disk is named by its device and inode: remove the name`)
		}
	case "":
		return wrong("scope", `it is missing: write "cluster" if other hosts can use these disks, and "host" if none can`)
	default:
		return wrong("scope", `%q is not known: use "cluster" or "host"`, t.Scope)
	}
	if what := templateProblem(t); what != "" {
		return wrong("name", "%s", what)
	}
	if t.Path != "" {
		r.pattern = regexp.MustCompile(globExpression(t.Path))
	}
	return r, nil
}

func templateProblem(t RuleText) string {
	if t.Name == "" {
		return ""
	}
	if !utf8.ValidString(t.Name) {
		return fmt.Sprintf("%q is not UTF-8: take the names from the disks, with {rest}, {path}, {base} or {inode}", t.Name)
	}
	if len(t.Name) > maxTemplate {
		return fmt.Sprintf("it has %d bytes: use up to %d", len(t.Name), maxTemplate)
	}
	used := variable().FindAllString(t.Name, -1)
	for _, v := range used {
		switch v {
		case "{path}", "{base}", "{inode}":
		case "{rest}":
			if !strings.ContainsAny(t.Path, "*?") {
				return "{rest} is what * and ? in the path stand for, and there are none: add one, or use {base}"
			}
		default:
			return fmt.Sprintf("%s stands for nothing: use {path}, {rest}, {base} or {inode}", v)
		}
	}
	if len(used) == 0 && (t.Path == "" || strings.ContainsAny(t.Path, "*?")) {
		return fmt.Sprintf("all disks would have the one name %q, and only one of them could be used at a time: add {rest}, {path}, {base} or {inode}", t.Name)
	}
	if dirs := t.Path[:strings.LastIndexByte(t.Path, '/')+1]; (strings.ContainsAny(dirs, "*?") || strings.Contains(t.Path, "**")) &&
		!slices.ContainsFunc(used, func(v string) bool { return v != "{base}" }) {
		return "files of one name in two directories would be one disk, and only one of them could be used at a time: use {rest}, or {path}, in place of {base}"
	}
	if strings.ContainsAny(variable().ReplaceAllString(t.Name, ""), "{}") {
		return fmt.Sprintf("%q has a { or } that belongs to no variable: remove it", t.Name)
	}
	return ""
}

// deadDevice is what is wrong with a rule that matches nothing as its path and its type
// do not go together; nil if they do, as far as can be known.
func deadDevice(t RuleText) *RuleError {
	if t.Path == "" || t.Type == "" {
		return nil
	}
	const dev = "/dev/"
	fixed := t.Path
	if i := strings.IndexAny(fixed, "*?"); i >= 0 {
		fixed = fixed[:i]
	}
	device := slices.Contains(DeviceTypes(), t.Type)
	if device && !strings.HasPrefix(fixed, dev) && (fixed == t.Path || !strings.HasPrefix(dev, fixed)) {
		return &RuleError{"path", fmt.Sprintf("%q can match no device of type %q, of which the path begins with %s: leave the path or the type out, or write the path that vmlockctl identify shows", t.Path, t.Type, dev)}
	}
	// What is mounted in /dev is known by name, but for what is below /dev/shm.
	other := t.Type == TypeCharacter || t.Type == TypeUnknown || localFS[t.Type] || shared[t.Type] != nil
	if !device && !other && strings.HasPrefix(fixed, dev) && !strings.HasPrefix(fixed, dev+"shm/") {
		return &RuleError{"type", fmt.Sprintf("%q is no kind of device: use one of %s, or %s", t.Type, strings.Join(DeviceTypes(), ", "), TypeCharacter)}
	}
	return nil
}

func globExpression(glob string) string {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	open := false
	for i := 0; i < len(glob); {
		c := glob[i]
		if !open && (c == '*' || c == '?') {
			open = true
			b.WriteString("(")
		}
		switch {
		case strings.HasPrefix(glob[i:], "**"):
			b.WriteString(".*")
			i += 2
		case c == '*':
			b.WriteString("[^/]*")
			i++
		case c == '?':
			b.WriteString("[^/]")
			i++
		default:
			end := i
			for end < len(glob) && glob[end] != '*' && glob[end] != '?' {
				end++
			}
			b.WriteString(regexp.QuoteMeta(glob[i:end]))
			i = end
		}
	}
	if open {
		b.WriteString(")")
	}
	b.WriteString(`\z`)
	return b.String()
}

// Text is the rule as it was written.
func (r Rule) Text() RuleText { return r.text }

// Shadows says whether r, if it comes first, leaves nothing for a later rule. It
// finds the plain cases only.
func (r Rule) Shadows(later Rule) bool {
	pathCovers := r.text.Path == "" || r.text.Path == later.text.Path || r.text.Path == "/**"
	if top, ok := strings.CutSuffix(r.text.Path, "/**"); ok && later.text.Path != "" {
		pathCovers = pathCovers || strings.HasPrefix(later.text.Path, top+"/")
	}
	return pathCovers && (r.text.Type == "" || r.text.Type == later.text.Type)
}

func (r Rule) match(id *Identity) (rest string, ok bool) {
	if r.text.Path == "" && r.text.Type == "" || r.text.Type != "" && r.text.Type != id.Type {
		return "", false
	}
	if r.pattern == nil {
		return "", true
	}
	m := r.pattern.FindStringSubmatch(id.Path)
	if m == nil {
		return "", false
	}
	if len(m) > 1 {
		rest = m[1]
	}
	return rest, true
}

// applyRules lets the first rule that matches decide.
func (l *lookup) applyRules(id *Identity, n node) error {
	for i, rule := range l.rules {
		if rest, ok := rule.match(id); ok {
			return rule.apply(id, n, i+1, rest)
		}
	}
	return nil
}

// overrule lets the first rule that matches decide, if it says what the name is, of
// what contradicts itself.
func (l *lookup) overrule(id *Identity, n node, contradiction error) error {
	for i, rule := range l.rules {
		rest, ok := rule.match(id)
		switch {
		case !ok:
			continue
		case rule.text.Name == "": // it would need the name that was not found
			return contradiction
		}
		id.step("%v", contradiction)
		return rule.apply(id, n, i+1, rest)
	}
	return contradiction
}

func (r Rule) apply(id *Identity, n node, place int, rest string) error {
	t := r.text
	said := fmt.Sprintf("rule %d of the configuration (%s) says scope %s", place, t.subject(), r.scope)
	if r.scope == Host {
		switch {
		case id.Local == "": // what is there may not be looked at
			id.Scope, id.Name, id.ByPath, id.Doubt = Host, id.Path, true, false
		case id.Scope != Host || !id.ByPath: // not of an overlay, where the inode may change
			id.Scope, id.Name, id.ByPath, id.Doubt = Host, id.Local, false, false
		}
		id.step("%s: it is %s there", said, id.Name)
		return nil
	}
	found := id.Scope == Cluster && (!id.ByPath || inShare(id.Name))
	id.Scope, id.Doubt = Cluster, false
	switch {
	case t.Name != "":
		isFile := n.mode&unix.S_IFMT == unix.S_IFREG
		if strings.Contains(t.Name, "{inode}") && !isFile {
			if id.Local == "" {
				return fmt.Errorf("%w: %s names it by its inode, and vmlockd may not look at it: let root read %s, or use {rest} in the name", ErrContradiction, said, path.Dir(id.Path))
			}
			return fmt.Errorf("%w: %s names it by its inode, and it is no file", ErrContradiction, said)
		}
		id.Name = "rule:" + strings.NewReplacer("{path}", id.Path, "{rest}", rest, "{base}", path.Base(id.Path), "{inode}", strconv.FormatUint(n.ino, 10)).Replace(t.Name)
		// Also if only the pattern is about the path: another link to the same file may
		// not match it.
		id.ByPath = r.pattern != nil || strings.Contains(t.Name, "{path}") || strings.Contains(t.Name, "{base}")
		id.step("%s, and the name %s", said, id.Name)
	case found:
		id.step("%s", said)
	default:
		id.Name, id.ByPath = id.Path, true
		id.step("%s, and the path is its name", said)
	}
	return nil
}

func (t RuleText) subject() string {
	switch {
	case t.Type == "":
		return t.Path
	case t.Path == "":
		return "type " + t.Type
	}
	return t.Path + ", type " + t.Type
}

// scheme is changed when the same disk would get another name by other means than
// rules.
const scheme = "identity 5"

// Digest is equal for hosts on which the same rules, and the same version of what
// comes before rules, make the names of disks; 16 hexadecimal digits.
func Digest(rules []Rule) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", scheme)
	for _, r := range rules {
		fmt.Fprintf(h, "%q %q %q %q\n", r.text.Path, r.text.Type, r.text.Scope, r.text.Name)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
