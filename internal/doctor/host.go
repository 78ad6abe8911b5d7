package doctor

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the System that this process runs on.
func Host() System { return host{} }

type host struct{}

func (host) ReadFile(path string, most int) ([]byte, error) {
	// O_NONBLOCK: to open a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

func (host) Readlink(path string) (string, error) { return os.Readlink(path) }

func (host) Stat(path string) (FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return FileInfo{}, err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Stat(path, &st); err != nil {
		return FileInfo{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Statfs(path, &fs); err != nil {
		return FileInfo{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	memory := fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
	return FileInfo{Mode: info.Mode(), UID: st.Uid, Tmpfs: memory}, nil
}

func (host) List(dir string, most int) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(most + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) > most {
		return nil, fmt.Errorf("%s has more than %d entries", dir, most)
	}
	slices.Sort(names)
	return names, nil
}

func (host) Hostname() (string, error) { return os.Hostname() }

// connectTimeout bounds how long a full backlog is waited for.
const connectTimeout = time.Second

func (host) Connect(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return c.Close()
}
