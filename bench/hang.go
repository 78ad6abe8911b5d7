package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// hangClients are measured, while others ask for files that hang.
	hangClients = 8
	// hangPause is between two of those, each of which asks for another file.
	hangPause = 10 * time.Millisecond
)

// hang measures what clients get while a file system does not answer others.
func hang(ctx context.Context, s *series, daemons []*daemon, rounds int, window time.Duration) error {
	v, err := newVM(0)
	if err != nil {
		return err
	}
	defer v.end()
	// All that nothing hangs for first: what has hung may change a daemon for a while.
	for _, hangs := range []bool{false, true} {
		what := "nothing hangs"
		if hangs {
			what = fmt.Sprintf("a file hangs every %v", hangPause)
		}
		progress("%s: pairs, %d kept, %s", s.backend, hangClients, what)
		for range rounds {
			for _, d := range daemons {
				p, err := d.besideHanging(ctx, v.owner, hangs, window)
				if err != nil {
					return err
				}
				for _, row := range []struct {
					measure, unit string
					value         float64
				}{
					{"pairs/s", "", p.perSecond},
					{"99th percentile of a pair", "ms", p.p99},
					{"longest pair", "ms", p.longest},
					{"daemon's processor time for a pair", "us", p.processor},
				} {
					s.add(fmt.Sprintf("%s, clients %d kept, %s", row.measure, hangClients, what), d.who, row.unit, row.value)
				}
			}
		}
	}
	return nil
}

// besideHanging is pairs, while others ask for files that hang.
func (d *daemon) besideHanging(ctx context.Context, o locking.Owner, hangs bool, window time.Duration) (p pairsRound, err error) {
	if !hangs {
		return d.pairs(ctx, o, use{clients: hangClients, kept: true}, window)
	}
	fs, err := newHangingFS()
	if err != nil {
		return p, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	failed := make(chan error, 1)
	asking.Go(func() {
		tick := time.NewTicker(hangPause)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			c, err := d.connect(ctx, o)
			if err != nil {
				if ctx.Err() == nil {
					failed <- err
				}
				return
			}
			asking.Go(func() {
				defer c.Close()
				_ = c.Acquire(ctx, locking.Ref{Name: filepath.Join(fs.dir, fmt.Sprint("disk", n))}, 0)
			})
		}
	})
	p, err = d.pairs(ctx, o, use{clients: hangClients, kept: true}, window)
	cancel()
	asking.Wait()
	select {
	case asked := <-failed:
		err = errors.Join(err, asked)
	default:
	}
	return p, errors.Join(err, fs.close())
}

// hangingFS is a file system in which no file is ever found, nor not found: a FUSE whose server
// answers nothing but that it is there (<linux/fuse.h>).
type hangingFS struct {
	dir  string
	fuse int
}

func newHangingFS() (*hangingFS, error) {
	dir, err := os.MkdirTemp("", "vmlockd-bench-")
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("/dev/fuse: %w", err), os.Remove(dir))
	}
	fs := &hangingFS{dir: dir, fuse: fd}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Geteuid(), os.Getegid())
	if err := unix.Mount("vmlockd-bench", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(fmt.Errorf("mount of a FUSE: %w", err), unix.Close(fd), os.Remove(dir))
	}
	if err := fs.begin(); err != nil {
		return nil, errors.Join(err, fs.close())
	}
	return fs, nil
}

// begin answers FUSE_INIT, which the kernel asks first.
func (fs *hangingFS) begin() error {
	const (
		inHeader, outHeader, initOut = 40, 16, 64
		fuseInit                     = 26
		minor                        = 31
		parallelDirops               = 1 << 18 // several names of a directory may be looked up at once
	)
	b := make([]byte, 1<<17)
	n, err := unix.Read(fs.fuse, b)
	if err != nil || n < inHeader || binary.NativeEndian.Uint32(b[4:]) != fuseInit {
		return fmt.Errorf("FUSE_INIT: %d bytes, %w", n, err)
	}
	out := make([]byte, outHeader+initOut)
	binary.NativeEndian.PutUint32(out, uint32(len(out)))
	copy(out[8:16], b[8:16]) // unique
	binary.NativeEndian.PutUint32(out[outHeader:], 7)
	binary.NativeEndian.PutUint32(out[outHeader+4:], minor)
	binary.NativeEndian.PutUint32(out[outHeader+12:], parallelDirops)
	binary.NativeEndian.PutUint32(out[outHeader+20:], 4096) // max_write
	if _, err := unix.Write(fs.fuse, out); err != nil {
		return fmt.Errorf("FUSE_INIT: %w", err)
	}
	return nil
}

// close ends everything that hangs, with an error.
func (fs *hangingFS) close() error {
	return errors.Join(unix.Close(fs.fuse), unix.Unmount(fs.dir, unix.MNT_DETACH), os.Remove(fs.dir))
}
