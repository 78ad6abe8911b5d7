// Command probe asks the lock daemon of its host for one lock, as libvirt would:
//
//	probe [-shared] [-lockspace PATH] try NAME    take the lock and give it back; says "free"
//	probe [-shared] [-lockspace PATH] hold NAME   take it, say "held", and keep it until SIGTERM; then
//	                                              give it back by the same connection, and say "given back"
//
// With -many N it is N locks, named NAME0, NAME1 and so on, which a lockspace makes files for.
// A refusal is printed and exit status 1, anything else that goes wrong 2. With
// -until-free a refusal is no end: it tries again, each time the daemon answers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

func main() {
	shared := flag.Bool("shared", false, "ask for a shared lock")
	lockspace := flag.String("lockspace", "", "the lockspace's path")
	socket := flag.String("socket", "/run/libvirt/virtlockd-sock", "the daemon's socket")
	untilFree := flag.Bool("until-free", false, "ask again until it is granted")
	many := flag.Int("many", 0, "how many locks; 0 for one of just that name")
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	var flags uint32
	if *shared {
		flags = lockprogram.FlagShared
	}
	refs := []locking.Ref{{Lockspace: *lockspace, Name: flag.Arg(1)}}
	if *many > 0 {
		flags |= lockprogram.FlagAutocreate
		refs = refs[:0]
		for n := range *many {
			refs = append(refs, locking.Ref{Lockspace: *lockspace, Name: flag.Arg(1) + strconv.Itoa(n)})
		}
	}
	if err := run(*socket, refs, flags, flag.Arg(0) == "hold", *untilFree); err != nil {
		fmt.Println(err)
		var e *rpc.Error
		if errors.As(err, &e) {
			os.Exit(1)
		}
		os.Exit(2)
	}
}

func run(socket string, refs []locking.Ref, flags uint32, hold, untilFree bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	c, err := lockprogram.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "probe", UUID: [16]byte{0xbe}}); err != nil {
		return err
	}
	if space := refs[0].Lockspace; space != "" {
		if err := c.CreateLockspace(ctx, space); err != nil {
			return err
		}
	}
	release := func() error {
		for _, ref := range refs {
			if err := c.Release(context.Background(), ref); err != nil {
				return err
			}
		}
		return nil
	}
	for _, ref := range refs {
		for {
			err := c.Acquire(ctx, ref, flags)
			var e *rpc.Error
			if err == nil {
				break
			}
			if !untilFree || !errors.As(err, &e) {
				return err
			}
		}
	}
	if !hold {
		fmt.Println("free")
		return release()
	}
	fmt.Println("held")
	<-ctx.Done()
	if err := release(); err != nil {
		return err
	}
	fmt.Println("given back")
	return nil
}
