package identity

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxAttribute bounds, in bytes, what is read of a file. In sysfs that is a page,
	// and in /proc a line of about 80 bytes for each mount of NFS.
	maxAttribute = 1 << 20
	// maxEntries bounds what is listed of a directory.
	maxEntries = 1 << 16
)

// read is a file's text without blanks around it; "" if there is none or it cannot
// be read: a driver may have taken it away, or have nothing to say.
func (l *lookup) read(parts ...string) string {
	return strings.Trim(string(l.readBytes(parts...)), " \t\n\x00")
}

// readBytes makes no more system calls than it must: os.Open would make three more.
func (l *lookup) readBytes(parts ...string) []byte {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(l.at(parts), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	})
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	// An attribute in sysfs comes in one read, unless it fills the room.
	sysfs := len(parts) > 0 && strings.HasPrefix(parts[0], "/sys/")
	text := make([]byte, 0, 512)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
		if err != nil || len(text)+max(n, 0) > maxAttribute {
			return nil // a part could be taken for something else
		}
		if n <= 0 {
			return text
		}
		switch text = text[:len(text)+n]; {
		case len(text) == cap(text):
			text = append(make([]byte, 0, 8*cap(text)), text...)
		case sysfs:
			return text
		}
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// at is where the host has a path.
func (l *lookup) at(parts []string) string {
	return l.host.at(path.Join(parts...))
}

func (l *lookup) exists(parts ...string) bool {
	var st unix.Stat_t
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Stat(l.at(parts), &st) })
	return err == nil
}

// list is the names in a directory, in order; none if it is not there. What is a device
// in its place is not opened: that could have its driver do something, or hang.
func (l *lookup) list(parts ...string) ([]string, error) {
	f, err := os.OpenFile(l.at(parts), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries)
	if err != nil && err != io.EOF {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// maxLinks bounds how many links lead to each other.
const maxLinks = 8

// real is where a link leads. In sysfs and in what udev makes of /dev only the last
// part of a path is a link.
func (l *lookup) real(parts ...string) (string, error) {
	p := path.Join(parts...)
	for range maxLinks {
		to, err := os.Readlink(l.host.at(p))
		if errors.Is(err, unix.EINVAL) {
			return p, nil
		}
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			p = path.Clean(to)
		} else {
			p = path.Join(path.Dir(p), to)
		}
	}
	return "", unix.ELOOP
}
