// Command demo shows in two minutes what vmlockd is for, on three nodes with
// stock libvirt, corosync and the kernel's DLM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

func main() {
	vmlockd := flag.String("vmlockd", "bin/vmlockd", "the vmlockd `program` to show, built without cgo")
	vmlockctl := flag.String("vmlockctl", "bin/vmlockctl", "the vmlockctl `program` to show, likewise")
	logs := flag.String("logs", "", "`directory` for the nodes' logs; without it they are shown only if something fails")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := run(ctx, *vmlockd, *vmlockctl, *logs); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// vmConfig is all the configuration that vmlockd needs on each host. By default, and
// as dlm_controld does not fence here, its guard waits for a host that vanished.
const vmConfig = "backend = \"cluster\"\n"

type demo struct {
	ctx   context.Context
	begin time.Time
	lab   *lab.Lab
}

func run(ctx context.Context, vmlockd, vmlockctl, logs string) (err error) {
	cfg := lab.Config{
		Nodes: 3, Libvirt: true, VMLockd: vmlockd, VMLockdConfig: func(int) string { return vmConfig },
		Binaries: map[string]string{"vmlockctl": vmlockctl}, LogDir: logs,
	}
	if missing := lab.Missing(cfg); len(missing) > 0 {
		return fmt.Errorf("this machine cannot run the demo. Missing:\n  %s", strings.Join(missing, "\n  "))
	}
	d := &demo{ctx: ctx, begin: time.Now()}
	d.say("Three hosts boot: corosync, dlm_controld, vmlockd, stock libvirtd with lock_manager = \"lockd\".")
	d.lab, err = lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			d.lab.Dump(os.Stderr)
		}
		err = errors.Join(err, d.lab.Close())
	}()
	for _, n := range d.lab.Nodes() {
		if err := n.WaitLibvirt(ctx); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(d.lab.Shared(), "web.img"), lab.CountingGuest(), 0o600); err != nil {
		return err
	}
	web := lab.Domain{Name: "web", Disks: []lab.Disk{{Path: lab.SharedDir + "/web.img"}}}

	d.say("The virtual machine web starts on node1. Its disk is on storage that all hosts see.")
	if err := d.works(d.lab.Node(1).Create(ctx, web)); err != nil {
		return err
	}
	if err := d.writes(); err != nil {
		return err
	}
	d.say("Somebody starts a second virtual machine on the same disk, on node2. It must not run:")
	thief := web
	thief.Name = "thief"
	res, err := d.lab.Node(2).Create(ctx, thief)
	switch {
	case err != nil:
		return err
	case res.OK():
		return errors.New("node2 started a second virtual machine on the disk")
	case !strings.Contains(res.Stderr, "resource busy"):
		return fmt.Errorf("node2 refused for another reason: %v", res)
	}
	d.quote(res.Stderr)

	d.say("web moves to node2 while it runs, and its lock moves with it.")
	if err := d.works(d.lab.Node(1).Migrate(ctx, "web", d.lab.Node(2))); err != nil {
		return err
	}
	if err := d.writes(); err != nil {
		return err
	}
	if err := d.takeOver(web); err != nil {
		return err
	}
	d.say("Done. One disk never had two writers.")
	return nil
}

// takeOver cuts the power of node2, where web runs, and starts web on node3.
func (d *demo) takeOver(web lab.Domain) error {
	d.say("node2 loses its power. web is started on node3 again and again, until the cluster knows that node2 is gone.")
	lost := time.Now()
	if err := d.lab.Node(2).PowerCut(d.ctx); err != nil {
		return err
	}
	for vanished := false; !vanished; {
		res, err := d.lab.Node(3).Create(d.ctx, web)
		if err != nil {
			return err
		}
		d.quote(res.Stderr)
		if res.OK() {
			return errors.New("node3 started web, and nobody knew whether node2 was still writing")
		}
		vanished = strings.Contains(res.Stderr, "node 2") && strings.Contains(res.Stderr, "has vanished") && strings.Contains(res.Stderr, "seconds more")
	}
	d.say("It still must not run: without fencing, node2 could be alive and cut off. Then vmlockd there would stop web, and the others wait for as long as that can take.")
	d.say("An operator sees that node2 is off, and need not wait:")
	confirm := []string{"confirm-dead", "--yes", "--reason", "its power was cut", "2"}
	fmt.Println("         # vmlockctl confirm-dead --yes --reason 'its power was cut' 2")
	res, err := d.lab.Node(3).Exec(d.ctx, "vmlockctl", confirm...)
	if err := d.works(res, err); err != nil {
		return err
	}
	fmt.Printf("         %s\n", strings.TrimSpace(res.Stdout))
	for {
		res, err := d.lab.Node(3).Create(d.ctx, web)
		if err != nil {
			return err
		}
		if res.OK() {
			break
		}
		d.quote(res.Stderr) // the kernel may still be about to give the locks of node2 away
		if strings.Contains(res.Stderr, "has vanished") {
			return errors.New("node3 still waits for node2")
		}
	}
	d.say("web runs on node3, %v after the power cut.", time.Since(lost).Round(time.Second))
	return d.writes()
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("%4ds  %s\n", int(time.Since(d.begin).Seconds()), fmt.Sprintf(format, args...))
}

// quote shows what virsh said.
func (d *demo) quote(text string) {
	for line := range strings.Lines(strings.TrimSpace(text)) {
		fmt.Printf("         virsh: %s\n", strings.TrimSpace(line))
	}
}

func (d *demo) works(res lab.Result, err error) error {
	if err == nil && !res.OK() {
		err = errors.New(res.String())
	}
	return err
}

// writes waits until the guest has written to its disk.
func (d *demo) writes() error {
	read := func() (uint32, error) {
		b, err := os.ReadFile(filepath.Join(d.lab.Shared(), "web.img"))
		return lab.Counter(b), err
	}
	before, err := read()
	if err != nil {
		return err
	}
	err = lab.WaitFor(d.ctx, "the guest to write", func(context.Context) (bool, error) {
		now, err := read()
		return now > before, err
	})
	if err == nil {
		d.say("web runs and writes to its disk.")
	}
	return err
}
