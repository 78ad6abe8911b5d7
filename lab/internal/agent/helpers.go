package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// Fence is the lab's fence agent, which dlm_controld starts with "node=N" on standard input. It asks the
// supervisor to cut that node's power, and succeeds only if that is done.
func Fence(stdin io.Reader) error {
	var id string
	sc := bufio.NewScanner(stdin)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(strings.TrimSpace(sc.Text()), "node="); ok {
			id = v
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	if _, err := strconv.Atoi(id); err != nil {
		return fmt.Errorf("no node=N on standard input")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	url := "http://" + net.JoinHostPort(wire.SupervisorAddr, strconv.Itoa(wire.FencePort)) + "/fence/" + id
	return wire.Call(ctx, http.DefaultClient, http.MethodPost, url, nil, nil)
}

// Emulator becomes the QEMU of that name, with the image locks of its file block devices off. libvirt has no setting for
// that: it gives block devices as -blockdev with a JSON object.
func Emulator(name string, args []string) error {
	program := "/usr/bin/" + name
	argv := []string{program}
	for i, arg := range args {
		if i > 0 && args[i-1] == "-blockdev" {
			for _, driver := range []string{"file", "host_device"} {
				arg = strings.Replace(arg, `{"driver":"`+driver+`",`, `{"driver":"`+driver+`","locking":"off",`, 1)
			}
		}
		argv = append(argv, arg)
	}
	return fmt.Errorf("%s: %w", program, unix.Exec(program, argv, os.Environ()))
}
