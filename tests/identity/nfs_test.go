package identity_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// exports makes node 3 a server of NFS with two file systems, which have UUIDs that it
// takes for their numbers. What is above them has to have a number too; the nodes' own
// root, an overlay, cannot be exported.
const exports = `mkdir -p /srv/exp /var/lib/nfs/v4recovery; mount -t tmpfs none /srv/exp
	modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd; : > /var/lib/nfs/etab; : > /var/lib/nfs/rmtab
	exportfs -o rw,no_root_squash,no_subtree_check,fsid=0 '*:/srv/exp'
	for e in a b; do
		dd if=/dev/zero of=/tmp/fs$e bs=1M count=16 status=none; mkfs.ext4 -q -F /tmp/fs$e
		mkdir /srv/exp/$e; mount -o loop /tmp/fs$e /srv/exp/$e
		exportfs -o rw,no_root_squash,no_subtree_check '*:'/srv/exp/$e
	done
	rpcbind; rpc.mountd
	echo 10 > /proc/fs/nfsd/nfsv4gracetime; echo 10 > /proc/fs/nfsd/nfsv4leasetime
	rpc.nfsd 2; echo Y > /proc/fs/nfsd/v4_end_grace`

// realNFS: one export by two names of its server, two versions of NFS and at several
// places, and another export at one of these places. Then the server stops to answer.
func realNFS(t *testing.T, s *suite) {
	s.sh(t, 3, exports)
	mount := func(from, at, options string) string {
		return fmt.Sprintf("modprobe nfs; modprobe nfsv3; modprobe nfsv4; mkdir -p %s; mount -t nfs -o %s %s %s", at, options, from, at)
	}
	const v4 = "vers=4.2"
	s.together(t, map[int]string{
		3: mount("localhost:/a", "/mnt/own", v4),
		1: mount("192.0.2.3:/a", "/mnt/nfs", v4),
		2: mount("node3:/a", "/srv/nfs", v4) + ";" + mount("node3:/b", "/mnt/nfs", v4) + ";" + mount("192.0.2.3:/srv/exp/a", "/mnt/v3", "vers=3,nolock"),
	})
	s.undo(t, 3, "umount /mnt/own")
	s.undo(t, 1, "umount /mnt/nfs")
	s.undo(t, 2, "umount /mnt/nfs; umount /srv/nfs; umount /mnt/v3")
	s.files(t, 1, 2, "/mnt/nfs/web.img", "/srv/nfs/web.img")
	t.Run("OneDisk", func(t *testing.T) {
		s.prove(t, 1, 2, "/mnt/nfs/web.img", "/srv/nfs/web.img", proof{typ: "nfs4", start: true})
	})
	t.Run("OtherWays", func(t *testing.T) {
		s.sh(t, 2, "mkdir -p /mnt/bound; mount --bind /srv/nfs /mnt/bound; ln -s /mnt/v3/web.img /tmp/link.img; ln /srv/nfs/web.img /srv/nfs/hard.img")
		s.undo(t, 2, "umount /mnt/bound; rm /tmp/link.img /srv/nfs/hard.img")
		s.hold(t, 1, "/mnt/nfs/web.img")
		s.wantHeld(t, 3, "/mnt/own/web.img") // the server itself, through its own mount
		others := []string{"/mnt/v3/web.img", "/mnt/bound/web.img", "/tmp/link.img", "/srv/nfs/hard.img", "/srv/../srv/nfs/web.img"}
		facts := []fact{one(1, "/mnt/nfs/web.img", 3, "/mnt/own/web.img"), two(1, "/mnt/nfs/web.img", 2, "/mnt/nfs/web.img")}
		for _, path := range others {
			s.wantHeld(t, 2, path)
			facts = append(facts, one(1, "/mnt/nfs/web.img", 2, path))
		}
		s.wantFree(t, 2, "/mnt/nfs/web.img")
		s.capture(t, "nfs", "A file by NFSv4 and by NFSv3, by several links and mounts, and on the server by its own mount; and one of another export.", facts...)
	})
	t.Run("Hangs", func(t *testing.T) { nfsHangs(t, s) })
}

// nfsHangs: who asks for disks of a server that does not answer is refused in time, by
// which path ever he asks, and nobody else waits.
func nfsHangs(t *testing.T, s *suite) {
	const beside = "/var/lib/libvirt/images/beside.img"
	s.sh(t, 1, "cp /tmp/boot "+beside+"; ln -sfn /mnt/nfs /var/lib/libvirt/images/linked")
	s.wantFree(t, 1, beside)
	s.sh(t, 3, "echo 0 > /proc/fs/nfsd/threads")
	answers := func(ctx context.Context) error {
		res, err := s.Node(3).Shell(ctx, "echo 2 > /proc/fs/nfsd/threads; echo Y > /proc/fs/nfsd/v4_end_grace")
		if err == nil && !res.OK() {
			err = fmt.Errorf("%v", res)
		}
		return err
	}
	t.Cleanup(func() { _ = answers(s.ctx) })

	// More than may hang of one file system (internal/identity, maxStuck), half of them
	// by a link from the root file system.
	const asked = 24
	var (
		all     sync.WaitGroup
		mu      sync.Mutex // guards refused
		refused []string
	)
	began := time.Now()
	ask := func(i int) {
		all.Go(func() {
			path := fmt.Sprintf("/mnt/nfs/new%d.img", i)
			if i%2 == 0 {
				path = fmt.Sprintf("/var/lib/libvirt/images/linked/new%d.img", i)
			}
			res, err := s.Node(1).Exec(s.ctx, "vmlockctl", "run", path, "--", "true")
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, fmt.Sprintf("%v %v", res, err))
			if err != nil || res.OK() || !strings.Contains(res.Stderr, "which disk it is cannot be found out") {
				t.Errorf("%s: %v, %v", path, res, err)
			}
		})
	}
	// Others go on meanwhile. What counts is the daemon's time, which is in its log: to
	// start that many programs keeps the node busy for long.
	const atMost = 5 * time.Second
	others := func(when string) {
		t.Helper()
		s.wantFree(t, 1, beside)
		log, err := s.Node(1).Log(s.ctx, lab.ServiceLock)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Duration(-1)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "event=lock-granted") && strings.Contains(line, beside) {
				_, last, _ := strings.Cut(strings.TrimSpace(line), "took=")
				if took, err = time.ParseDuration(last); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
			}
		}
		if took < 0 || took > atMost {
			t.Errorf("a disk of another file system took %v %s", took, when)
		} else {
			t.Logf("a disk of another file system took %v %s", took, when)
		}
	}
	const few = 4
	for i := range few {
		ask(i)
	}
	others("while the first are waited for")
	for i := few; i < asked; i++ {
		ask(i)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	// request_timeout is 10 s.
	select {
	case <-done:
		t.Logf("all %d were refused within %v; one of them: %s", asked, time.Since(began).Round(time.Second), refused[0])
	case <-time.After(2 * time.Minute):
		t.Fatalf("after two minutes, refused are %d of %d", len(refused), asked)
	}
	others("while they hang in the kernel")
	if res, err := s.Node(1).Exec(s.ctx, "vmlockctl", "who", "/mnt/nfs/new.img"); err != nil || !strings.Contains(res.Stdout, "Nobody") || res.Took > 3*atMost {
		t.Errorf("who has a disk that hangs: %v, %v", res, err)
	}
	if err := answers(s.ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the disk to be free again", func(ctx context.Context) (bool, error) {
		res, err := s.Node(1).Exec(ctx, "vmlockctl", "run", "/mnt/nfs/web.img", "--", "true")
		return err == nil && res.OK(), err
	})
	if err != nil {
		t.Error(err)
	}
}
