package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab"
)

// remainsEnv makes the test binary a process that starts a lab and waits to be killed.
const remainsEnv = "VMLOCKD_LAB_TEST_REMAINS"

// TestMain serves TestRemains, which needs a process to kill.
func TestMain(m *testing.M) {
	if name := os.Getenv(remainsEnv); name != "" {
		_, err := lab.Start(context.Background(), lab.Config{Name: name, Nodes: 2, NoCluster: true, LogDir: os.Getenv(lab.LogsEnv)})
		fmt.Println("started", err)
		select {}
	}
	os.Exit(m.Run())
}

// TestRemains kills the process that has started a lab, and then a supervisor, and looks for what is left.
func TestRemains(t *testing.T) {
	lab.Need(t, lab.Config{NoCluster: true})
	for _, victim := range []string{"test", "supervisor"} {
		t.Run(victim, func(t *testing.T) {
			ctx := within(t, soon)
			name := fmt.Sprintf("remains-%s-%d", victim, os.Getpid())
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), remainsEnv+"="+name, lab.LogsEnv+"="+t.TempDir())
			out, err := cmd.StdoutPipe()
			ok(t, err)
			ok(t, cmd.Start())
			defer cmd.Wait()
			defer cmd.Process.Kill()
			line, err := bufio.NewReader(out).ReadString('\n')
			ok(t, err)
			if line != "started <nil>\n" {
				t.Fatal(line)
			}
			supervisor := pid(t, name)
			spaces := namespaces(t, supervisor)
			if len(inside(t, spaces)) < 3 {
				t.Fatalf("two nodes and a supervisor have %v", inside(t, spaces))
			}
			if victim == "test" {
				ok(t, cmd.Process.Kill())
			} else {
				ok(t, unix.Kill(supervisor, unix.SIGKILL))
			}
			ok(t, lab.WaitFor(ctx, "the end of all processes", func(context.Context) (bool, error) {
				return len(inside(t, spaces)) == 0, nil
			}))
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			ok(t, err)
			if strings.Contains(string(mounts), name) {
				t.Errorf("mounts are left:\n%s", mounts)
			}
			if victim == "supervisor" {
				// Nobody was there to remove it; the next lab does.
				l, err := lab.Start(ctx, lab.Config{Nodes: 1, NoCluster: true, LogDir: t.TempDir()})
				ok(t, err)
				ok(t, l.Close())
			}
			if _, err := os.Stat(filepath.Join(lab.RunDir, name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the run directory is left: %v", err)
			}
		})
	}
}

func pid(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(lab.RunDir, name, "pid"))
	ok(t, err)
	var n int
	_, err = fmt.Sscan(string(b), &n)
	ok(t, err)
	return n
}

// namespaces are those that a process is in and this test is not.
func namespaces(t *testing.T, pid int) []string {
	t.Helper()
	var list []string
	for _, ns := range []string{"pid", "net", "mnt"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		ok(t, err)
		own, err := os.Readlink("/proc/self/ns/" + ns)
		ok(t, err)
		if link == own {
			t.Fatalf("the supervisor has our %s namespace", ns)
		}
		list = append(list, link)
	}
	return list
}

// inside are the processes in one of these namespaces. Nodes have PID namespaces of their own, but the lab's network.
func inside(t *testing.T, spaces []string) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	ok(t, err)
	var found []string
	for _, dir := range dirs {
		for _, ns := range []string{"pid", "net", "mnt"} {
			link, err := os.Readlink(dir + "/ns/" + ns)
			if err != nil {
				continue // it has ended
			}
			for _, s := range spaces {
				if link == s {
					found = append(found, dir+" "+link)
				}
			}
		}
	}
	return found
}
