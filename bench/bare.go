package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
)

// bareLocks takes record locks on files, one after the other, and nothing else.
// It is what a daemon that has lost its locks would have to do.
type bareLocks struct {
	dir   string
	count int
}

func newBareLocks() (*bareLocks, error) {
	dir, err := os.MkdirTemp("", "vmlockd-bench-")
	return &bareLocks{dir: dir}, err
}

func (*bareLocks) who() []string { return []string{"bare loop of open and fcntl"} }

func (b *bareLocks) name(n int) string { return filepath.Join(b.dir, fmt.Sprintf("disk%05d", n)) }

func (b *bareLocks) grow(_ context.Context, count int) error {
	for ; b.count < count; b.count++ {
		if err := os.WriteFile(b.name(b.count), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bareLocks) run(context.Context) ([]time.Duration, error) {
	fds := make([]int, 0, b.count)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	begin := time.Now()
	for n := range b.count {
		fd, err := unix.Open(b.name(n), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
		l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != nil {
			return nil, err
		}
	}
	return []time.Duration{time.Since(begin)}, nil
}

func (b *bareLocks) close(context.Context) error { return os.RemoveAll(b.dir) }

// bareAdoption adopts orphans in the kernel's DLM, with package dlm alone, in a
// lockspace of its own.
type bareAdoption struct {
	kernel    dlm.Kernel
	adoptions []dlm.Adoption
}

const bareSpace = "bench"

func newBareAdoption(ctx context.Context) (*bareAdoption, error) {
	b := &bareAdoption{kernel: dlm.Host()}
	ls, err := dlm.Create(ctx, b.kernel, bareSpace, dlm.Options{})
	if err != nil {
		return nil, err
	}
	return b, ls.Close(ctx)
}

func (*bareAdoption) who() []string {
	return []string{"bare adoption, AdoptAll", "bare adoption, one by one"}
}

// grow adopts what there is, so that all are in the order in which they were had,
// takes what is missing, and leaves it.
func (b *bareAdoption) grow(ctx context.Context, count int) error {
	ls, err := b.all(ctx)
	if err != nil {
		return err
	}
	options := dlm.LockOptions{Persistent: true}
	for n := len(b.adoptions); n < count; n++ {
		name := fmt.Sprintf("%032d", n)
		if _, err := ls.Lock(ctx, name, dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true}); err != nil {
			return err
		}
		b.adoptions = append(b.adoptions, dlm.Adoption{Name: name, Mode: dlm.EX, Options: options})
	}
	return ls.Close(ctx)
}

func (b *bareAdoption) all(ctx context.Context) (*dlm.Lockspace, error) {
	ls, err := dlm.Open(ctx, b.kernel, bareSpace, dlm.Options{})
	if err != nil {
		return nil, err
	}
	for _, a := range ls.AdoptAll(ctx, b.adoptions) {
		if a.Err != nil {
			return nil, a.Err
		}
	}
	return ls, nil
}

func (b *bareAdoption) run(ctx context.Context) (list []time.Duration, err error) {
	for _, oneByOne := range []bool{false, true} {
		begin := time.Now()
		var ls *dlm.Lockspace
		if oneByOne {
			ls, err = b.oneByOne(ctx)
		} else {
			ls, err = b.all(ctx)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, time.Since(begin))
		if err := ls.Close(ctx); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (b *bareAdoption) oneByOne(ctx context.Context) (*dlm.Lockspace, error) {
	ls, err := dlm.Open(ctx, b.kernel, bareSpace, dlm.Options{})
	if err != nil {
		return nil, err
	}
	for _, a := range b.adoptions {
		if _, err := ls.Adopt(ctx, a.Name, a.Mode, a.Options); err != nil {
			return nil, err
		}
	}
	return ls, nil
}

// close removes the lockspace with all that is in it.
func (b *bareAdoption) close(ctx context.Context) error {
	ls, err := dlm.Open(ctx, b.kernel, bareSpace, dlm.Options{})
	if err != nil {
		return err
	}
	return ls.Leave(ctx, true)
}
