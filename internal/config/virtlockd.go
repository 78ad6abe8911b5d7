package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmlockd/vmlockd/internal/libvirtconf"
	"github.com/vmlockd/vmlockd/internal/logs"
)

// virtlockdSuffix is how names of files end that are in libvirt's syntax.
const virtlockdSuffix = ".conf"

// virtlockdKeys are the keys of virtlockd.conf (libvirt's src/locking/lock_daemon_config.c),
// each with the key of ours that counts in its place if it is set.
var virtlockdKeys = map[string]string{
	"log_level":         "log.level",
	"log_filters":       "log.filters",
	"log_outputs":       "log.outputs",
	"max_clients":       "max_clients",
	"admin_max_clients": "admin_max_clients",
}

// Files are the files of a configuration.
type Files struct {
	// Own is vmlockd's file. Unless it is named on the command line it may be absent.
	Own   string
	Named bool
	// Virtlockd is libvirt's file for virtlockd if one is named on the command line; else
	// it is what Own says, and may be absent.
	Virtlockd string
}

// FilesOf sorts the files that --config names: virtlockd's own option -f, which an
// administrator's command line may have, is ours too. A name that ends in .conf is that
// of libvirt's file. Each kind may be given once.
func FilesOf(named []string) (Files, error) {
	f := Files{Own: DefaultPath()}
	for _, path := range named {
		if strings.HasSuffix(path, virtlockdSuffix) {
			if f.Virtlockd != "" {
				return f, fmt.Errorf("--config names %s and %s, and both are libvirt's by their names: give one of them", f.Virtlockd, path)
			}
			f.Virtlockd = path
			continue
		}
		if f.Named {
			return f, fmt.Errorf("--config names %s and %s: give one file of vmlockd, and beside it one with a name that ends in %s, which is libvirt's", f.Own, path, virtlockdSuffix)
		}
		f.Own, f.Named = path, true
	}
	return f, nil
}

// Load reads vmlockd's file, and then libvirt's for virtlockd: what that says counts
// where vmlockd's says nothing. Its keys that mean nothing here are in Warnings. The
// error is that of Load.
func (f Files) Load() (Config, error) {
	c, set, err := load(f.Own, !f.Named)
	if err != nil {
		return Config{}, err
	}
	path := c.VirtlockdConf
	if f.Virtlockd != "" {
		path = f.Virtlockd
	}
	if path == "" {
		return c, nil
	}
	text, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) && f.Virtlockd == "" {
		return c, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read libvirt's configuration of virtlockd: %w", err)
	}
	if err := c.addVirtlockd(path, text, set); err != nil {
		return Config{}, err
	}
	return c, nil
}

func load(path string, optional bool) (Config, map[string]bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && optional {
		return Default(), nil, nil
	}
	if err != nil {
		return Config{}, nil, fmt.Errorf("read the configuration: %w", err)
	}
	return parse(path, text)
}

// readBounded reads a byte more than libvirtconf takes.
func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, libvirtconf.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}

// addVirtlockd applies the text of a virtlockd.conf where set has no key of ours.
func (c *Config) addVirtlockd(path string, text []byte, set map[string]bool) error {
	settings, err := libvirtconf.Parse(text)
	if err != nil {
		var e *libvirtconf.SyntaxError
		errors.As(err, &e)
		return &Mistake{File: path, Line: e.Line, What: e.What + hintOfTOML(text)}
	}
	ours := keyTypes()
	first := map[string]int{}
	var all []error
	for _, s := range settings {
		mistake := func(format string, args ...any) {
			all = append(all, &Mistake{File: path, Line: s.Line, Key: s.Name, What: fmt.Sprintf(format, args...)})
		}
		note := func(format string, args ...any) {
			m := &Mistake{File: path, Line: s.Line, Key: s.Name, What: fmt.Sprintf(format, args...)}
			c.Warnings = append(c.Warnings, m.Error())
		}
		key, known := virtlockdKeys[s.Name]
		_, isOurs := ours[s.Name]
		switch {
		case first[s.Name] > 0:
			note("is set in line %d already, and that counts: remove one of them", first[s.Name])
			continue
		case !known && isOurs:
			mistake("this is a key of vmlockd's own file, and this one is libvirt's by its name: move it to %s, or give this file a name that does not end in %s", DefaultPath(), virtlockdSuffix)
			continue
		case !known:
			note("means nothing to vmlockd, and is passed over")
			continue
		}
		first[s.Name] = s.Line
		apply, err := c.virtlockdSetting(s)
		switch {
		case err != nil && (strings.HasPrefix(s.Name, "log_") || set[key]):
			// virtlockd passes over such ones of its log, too, and nobody may know that this file is read.
			note("%v; it is passed over", err)
		case err != nil:
			mistake("%v", err)
		case set[key] || s.Name == "log_outputs" && set["log.format"]:
		default:
			apply()
		}
	}
	return errors.Join(all...)
}

// virtlockdSetting checks a setting of virtlockdKeys, and returns what applies it.
func (c *Config) virtlockdSetting(s libvirtconf.Setting) (apply func(), err error) {
	wants := func(k libvirtconf.Kind) error {
		if s.Value.Kind != k {
			return fmt.Errorf("this is %v, and %v is wanted", s.Value.Kind, k)
		}
		return nil
	}
	text, n := s.Value.Text, s.Value.Number
	switch s.Name {
	case "log_level":
		if err := wants(libvirtconf.Number); err != nil {
			return nil, err
		}
		if n < 1 || n > int64(len(logs.Priorities)) {
			return nil, fmt.Errorf("%d is no level: use 1 (debug), 2 (info), 3 (warning) or 4 (error)", n)
		}
		return func() { c.Log.Level = logs.Priorities[n-1] }, nil
	case "log_filters":
		if err := wants(libvirtconf.Text); err != nil {
			return nil, err
		}
		err := logs.CheckFilters(text)
		return func() { c.Log.Filters = text }, err
	case "log_outputs":
		if err := wants(libvirtconf.Text); err != nil {
			return nil, err
		}
		err := logs.CheckOutputs(text)
		return func() { c.Log.Outputs = text }, err
	}
	if err := wants(libvirtconf.Number); err != nil {
		return nil, err
	}
	if n < 1 || n > maxMaxClients {
		return nil, fmt.Errorf("%d is out of range: use 1 to %d", n, maxMaxClients)
	}
	return func() {
		if s.Name == "max_clients" {
			c.MaxClients = int(n)
		} else {
			c.AdminMaxClients = int(n)
		}
	}, nil
}

// hintOfTOML is what to say of a text that has tables, or keys, of vmlockd's own file.
func hintOfTOML(text []byte) string {
	for line := range strings.Lines(string(text)) {
		m := assignment().FindStringSubmatch(line)
		if header().MatchString(line) || m != nil && strings.Contains(m[1], ".") {
			return fmt.Sprintf("; if this is vmlockd's own file, give it a name that does not end in %s", virtlockdSuffix)
		}
	}
	return ""
}

// Absolute makes paths of the command line absolute, for a program that leaves its
// directory.
func (f Files) Absolute() (Files, error) {
	for _, p := range []*string{&f.Own, &f.Virtlockd} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return f, err
		}
		*p = abs
	}
	return f, nil
}
