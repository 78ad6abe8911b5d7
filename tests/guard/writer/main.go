// Command writer takes one lock from the lock daemon of its host, as libvirt would,
// and writes for as long as it runs and has not been told otherwise:
//
//	writer DIRECTORY WHO NAME
//
// Each record is a file of its own in DIRECTORY, called WHO-NUMBER, which is new, and
// on the storage before the next one is begun. So whoever looks at the storage
// knows by its clock who wrote when, and need not believe a writer. A refusal is
// printed, and then it asks again.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

const (
	socket = "/run/libvirt/virtlockd-sock"
	// pause is between two records: enough of them to see an overlap of a tenth of a
	// second, and few enough to leave the processor to others.
	pause = 50 * time.Millisecond
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: writer DIRECTORY WHO NAME")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(dir, who, name string) error {
	ctx := context.Background()
	c, err := lockprogram.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: who, UUID: [16]byte{0xab}}); err != nil {
		return err
	}
	told := time.NewTicker(time.Second) // between two attempts
	defer told.Stop()
	for {
		err := c.Acquire(ctx, locking.Ref{Name: name}, 0)
		var refused *rpc.Error
		if err == nil {
			break
		}
		if !errors.As(err, &refused) {
			return err
		}
		fmt.Println(time.Now().UTC().Format(time.RFC3339Nano), err)
		<-told.C
	}
	fmt.Println("held")
	write := time.NewTicker(pause)
	defer write.Stop()
	for n := 1; ; n++ {
		if err := record(filepath.Join(dir, fmt.Sprintf("%s-%06d", who, n))); err != nil {
			return err
		}
		<-write.C
	}
}

func record(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(time.Now().UTC().Format(time.RFC3339Nano) + "\n"); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
