package cli_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// answerCommand is: answer STATUS TEXT ARGUMENT... It runs vmlockctl with TEXT
// typed on a terminal.
func answerCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	master, terminal, err := openTerminal()
	ts.Check(err)
	defer master.Close()
	defer terminal.Close()
	_, err = master.WriteString(args[1] + "\n")
	ts.Check(err)
	cmd := h.ctl(args[2:])
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, &out, &errs
	_ = cmd.Run()
	ts.Check(os.WriteFile(h.dir+"/out", []byte(out.String()), 0o600))
	ts.Check(os.WriteFile(h.dir+"/err", []byte(errs.String()), 0o600))
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("status %d, want %d: %s", got, want, errs.String())
	}
}

// askedCommand is: asked NAME TEXT ARGUMENT... It begins vmlockctl on a terminal,
// and waits until it has asked something with that text.
func askedCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	master, terminal, err := openTerminal()
	ts.Check(err)
	defer terminal.Close()
	ts.Defer(func() { master.Close() })
	h.typing[args[0]] = master
	cmd := h.ctl(args[2:])
	path := h.dir + "/" + args[0] + ".err"
	errs, err := os.Create(path)
	ts.Check(err)
	defer errs.Close()
	cmd.Stdin, cmd.Stderr = terminal, errs
	h.start(ts, args[0], cmd)
	until(ts, args[1], func() bool {
		text, _ := os.ReadFile(path)
		return strings.Contains(string(text), args[1])
	})
}

// typeCommand is: type NAME TEXT. It answers what asked has asked.
func typeCommand(ts *testscript.TestScript, _ bool, args []string) {
	_, err := hostOf(ts).typing[args[0]].WriteString(args[1] + "\n")
	ts.Check(err)
}

// openTerminal makes a terminal (pty(7)).
func openTerminal() (master, terminal *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, terminal, nil
}
