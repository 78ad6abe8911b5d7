package identity

import (
	"path"
	"strings"
)

// walk follows the symbolic links in an absolute path, one by one, without opening
// anything.
type walk struct {
	done  string // has no link in it
	rest  string // what comes behind it
	links int
}

// next goes on to the next link, and reports false if there is none.
func (w *walk) next(host kernel) bool {
	for w.rest != "" {
		name, after, _ := strings.Cut(w.rest, "/")
		w.rest = after
		switch name {
		case "", ".":
			continue
		case "..":
			w.done = strings.TrimSuffix(path.Dir("/"+w.done), "/")
			continue
		}
		to := host.link(w.done + "/" + name)
		if to == "" {
			w.done += "/" + name
			continue
		}
		w.links++
		if path.IsAbs(to) {
			w.done = ""
		}
		w.rest = to + "/" + after
		return true
	}
	return false
}

// path is where it leads as far as is known.
func (w *walk) path() string { return path.Join("/", w.done, w.rest) }
