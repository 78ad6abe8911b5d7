package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// sanlock has no cluster but a disk that all hosts share, so what it does can be
// measured beside vmlockd, but not in the same turns: in a lab of its own.

// partSanlock is the part of it, for --only.
const partSanlock = "sanlock"

//go:embed libsanlock/lease.c
var sanlockSource string

const (
	// sanlockName is what the program of libsanlock/lease.c is called in the nodes.
	sanlockName  = "bench-sanlock"
	sanlockSpace = "bench"
	whoSanlock   = "sanlock"
	// leaseSize is what a lockspace and a lease each have of a disk with sectors of 512 bytes.
	leaseSize = 1 << 20
	// takeOverTimeout bounds the wait for a lease of a lost host: by sanlock's defaults it
	// is free after 140 seconds.
	takeOverTimeout = 5 * time.Minute
)

// sanlockStore is where leases are.
type sanlockStore struct {
	what, path string
	nodes      int    // 1 and 2 have leases; another one is a server
	server     string // what it does for that
	client     string // what 1 and 2 do for it
}

// sanlockStores are a block device that both have, and a file that both have by NFS, as the nodes' shared
// directory does not know O_DIRECT, with which sanlock opens its files. The server has it on a disk of its own, and
// answers a write when it is there.
var sanlockStores = []sanlockStore{
	{what: "the shared block device", path: lab.Device, nodes: 2},
	{what: "a file by NFS", path: "/mnt/leases/sanlock", nodes: 3, server: `mkdir -p /srv/leases /var/lib/nfs/v4recovery
mkfs.ext4 -q -F ` + lab.Device + `; mount ` + lab.Device + ` /srv/leases; truncate -s 16M /srv/leases/sanlock
modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd; : > /var/lib/nfs/etab; : > /var/lib/nfs/rmtab
exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=0 '*:/srv/leases'
rpcbind; rpc.mountd; rpc.nfsd 2; echo Y > /proc/fs/nfsd/v4_end_grace`,
		client: `modprobe nfs; modprobe nfsv4; mkdir -p /mnt/leases; mount -t nfs -o vers=4.2 192.0.2.3:/ /mnt/leases`},
}

// prepare makes the place.
func (st sanlockStore) prepare(ctx context.Context, l *lab.Lab) error {
	for n := st.nodes; n >= 1; n-- {
		script := st.client
		if n > 2 {
			script = st.server
		}
		if script == "" {
			continue
		}
		if _, err := l.Node(n).MustSucceed(ctx, "sh", "-ec", script); err != nil {
			return err
		}
	}
	return nil
}

func (s sanlockStore) space(host int) string {
	return fmt.Sprintf("%s:%d:%s:0", sanlockSpace, host, s.path)
}

// lease is the n-th one, from 1, as the program of libsanlock/lease.c is told.
func (s sanlockStore) lease(n int) []string {
	return []string{sanlockSpace, fmt.Sprint("lease", n), s.path, strconv.Itoa(n * leaseSize)}
}

// sanlock measures Debian's sanlock.
func sanlock(ctx context.Context, o *options, s *series, r *report, work string) error {
	if _, err := exec.LookPath("sanlock"); err != nil {
		r.Missing = append(r.Missing, "sanlock beside vmlockd: "+err.Error()+"; Debian has it in sanlock")
		return nil
	}
	program, err := buildC(ctx, work, sanlockName, sanlockSource, "sanlock", "libsanlock-dev")
	if err != nil {
		r.Missing = append(r.Missing, err.Error())
		return nil
	}
	var errs []error
	for _, store := range sanlockStores {
		if err := store.needs(); err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("sanlock on %s: %v; Debian has what it needs in nfs-kernel-server, nfs-common and rpcbind", store.what, err))
			continue
		}
		if err := sanlockOn(ctx, o, s, store, program); err != nil {
			errs = append(errs, fmt.Errorf("sanlock on %s: %w", store.what, err))
		}
	}
	return errors.Join(errs...)
}

// needs says what its script would not find.
func (st sanlockStore) needs() error {
	if st.server == "" {
		return nil
	}
	var errs []error
	for _, name := range []string{"exportfs", "rpcbind", "rpc.mountd", "rpc.nfsd", "mount.nfs"} {
		_, err := exec.LookPath(name)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sanlockOn measures it in a lab of its own.
func sanlockOn(ctx context.Context, o *options, s *series, store sanlockStore, program string) (err error) {
	progress("sanlock on %s: %d nodes boot", store.what, store.nodes)
	ctx, cancel := context.WithTimeout(ctx, 2*takeOverTimeout)
	defer cancel()
	cfg := lab.Config{Nodes: store.nodes, NoCluster: true, DeviceMB: 32, Binaries: map[string]string{sanlockName: program}}
	if o.logs != "" {
		cfg.LogDir = o.logs + "/sanlock"
	}
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := store.prepare(ctx, l); err != nil {
		return err
	}
	for _, args := range [][]string{{"-s", store.space(0)}, {"-r", strings.Join(store.lease(1), ":")}, {"-r", strings.Join(store.lease(2), ":")}} {
		if _, err := l.Node(1).MustSucceed(ctx, "sanlock", append([]string{"direct", "init"}, args...)...); err != nil {
			return err
		}
	}
	joined := make([]time.Duration, 2)
	errs := make([]error, len(joined))
	var wg sync.WaitGroup
	for i := range joined {
		wg.Go(func() { joined[i], errs[i] = sanlockJoin(ctx, l.Node(i+1), store) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, took := range joined {
		s.addTime("join, on "+store.what, whoSanlock, took)
	}
	return sanlockLeases(ctx, s, l, store, o)
}

// sanlockJoin starts sanlock, without its watchdog, and joins the lockspace.
func sanlockJoin(ctx context.Context, n *lab.Node, store sanlockStore) (time.Duration, error) {
	if _, err := n.Start(ctx, "sanlock", "sanlock", "daemon", "-D", "-w", "0", "-U", "root", "-G", "root", "-l", "0", "-e", n.Name()); err != nil {
		return 0, err
	}
	err := lab.WaitFor(ctx, "sanlock to answer", func(ctx context.Context) (bool, error) {
		res, err := n.Exec(ctx, "sanlock", "client", "status")
		return res.OK(), err
	})
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	_, err = n.MustSucceed(ctx, "sanlock", "client", "add_lockspace", "-s", store.space(n.ID()))
	return time.Since(begin), err
}

// sanlockLeases measures pairs on node 1, refusals on node 2 of what node 1 has, and how
// long after its power cut node 2 has that.
func sanlockLeases(ctx context.Context, s *series, l *lab.Lab, store sanlockStore, o *options) error {
	lease := func(which int, args ...string) []string {
		return append(append([]string{sanlockName}, store.lease(which)...), args...)
	}
	if _, err := startReady(ctx, l.Node(1), "holder", nil, lease(2, "hold")...); err != nil {
		return err
	}
	progress("sanlock on %s: pairs and refusals", store.what)
	for range o.rounds {
		for _, m := range []struct {
			what, how string
			node      int
			lease     int
		}{
			{"a pair, on " + store.what, "pairs", 1, 1},
			{"a refusal of what another host has, on " + store.what, "refused", 2, 2},
		} {
			n := l.Node(m.node)
			args := lease(m.lease, m.how, strconv.FormatInt(o.window.Milliseconds(), 10))
			res, err := n.MustSucceed(ctx, args[0], args[1:]...)
			if err != nil {
				return err
			}
			t, err := turnOf(res.Stdout)
			if err != nil {
				return fmt.Errorf("%s says %w", sanlockName, err)
			}
			s.add(m.what, whoSanlock, "us", float64(t.each().Microseconds()))
		}
	}
	progress("sanlock on %s: a power cut", store.what)
	args := lease(2, "take")
	cut := time.Now()
	if err := l.Node(1).PowerCut(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, takeOverTimeout)
	defer cancel()
	if _, err := l.Node(2).MustSucceed(ctx, args[0], args[1:]...); err != nil {
		return err
	}
	s.addTime("power cut to the lock granted elsewhere, on "+store.what, whoSanlock, time.Since(cut))
	return nil
}
