package packaging_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmlockd/vmlockd/lab"
)

// guide is docs/install.md, and the hosts on which somebody does what it says.
type guide struct {
	*lab.Lab
	page string
	deb  string // name of the package's file, which each node has in /
	// had is the number of the node that had vmlockd before, with backend "local".
	had int
	// other is the number of the node whose libvirt has the other name for its lock manager.
	other int
}

// section is what is under a heading of the page, "## " included, up to the next one of that kind.
func (g *guide) section(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(g.page, "\n"+heading+"\n")
	if !found {
		t.Fatalf("docs/install.md has no %q", heading)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// steps are the numbered ones of "A cluster"; the first is 0 here.
func (g *guide) steps(t *testing.T) (list []string) {
	t.Helper()
	text := g.section(t, "## A cluster")
	begins := regexp.MustCompile(`(?m)^\d+\. `).FindAllStringIndex(text, -1)
	for i, at := range begins {
		end := len(text)
		if i+1 < len(begins) {
			end = begins[i+1][0]
		}
		list = append(list, text[at[0]:end])
	}
	return list
}

// block is the first indented block of a text, without what all its lines begin with.
func block(t *testing.T, text string) (lines []string) {
	t.Helper()
	indent := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if len(lines) == 0 {
			indent = line[:len(line)-len(strings.TrimLeft(line, " "))]
		}
		rest, indented := strings.CutPrefix(line, indent)
		if len(indent) < 4 || !indented || rest == "" {
			if len(lines) > 0 {
				return lines
			}
			continue
		}
		lines = append(lines, rest)
	}
	if len(lines) == 0 {
		t.Fatalf("there is no block in %q", text)
	}
	return lines
}

// named is what a text has between ` that matches, once.
func named(t *testing.T, text, pattern string) string {
	t.Helper()
	m := regexp.MustCompile("`(" + pattern + ")`").FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("there is no `%s` in %q", pattern, text)
	}
	return m[1]
}

// each does something on all nodes at once.
func (g *guide) each(t *testing.T, what string, do func(n *lab.Node) error) {
	t.Helper()
	t.Logf("%s %s", time.Now().UTC().Format("15:04:05"), what)
	var all errgroup.Group
	for _, n := range g.Nodes() {
		all.Go(func() error {
			if err := do(n); err != nil {
				return fmt.Errorf("%s on %s: %w", what, n.Name(), err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
}

// types does what a line of the page says, as somebody who types it there.
func (g *guide) types(ctx context.Context, n *lab.Node, line string) error {
	line, comment, _ := strings.Cut(line, " # ")
	comment = strings.TrimSpace(comment)
	if strings.HasPrefix(comment, "where it was ") && n.ID() != g.had {
		return nil
	}
	for command := range strings.SplitSeq(strings.TrimSpace(line), " && ") {
		words := strings.Fields(command)
		var err error
		switch words[0] {
		case "systemctl":
			err = systemctl(ctx, n, words[1], words[2:])
		case "editor":
			err = edit(ctx, n, words[1], comment)
		case "apt-get":
			err = g.aptGet(ctx, n, words)
		default:
			_, err = succeeds(n.Shell(ctx, command))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
	}
	return nil
}

// succeeds makes a status other than 0 an error.
func succeeds(res lab.Result, err error) (string, error) {
	if err == nil && !res.OK() {
		err = errors.New(res.String())
	}
	return res.Stdout, err
}

// aptGet installs what the node has already, and our package from its file. Without systemd the package starts nothing,
// so what systemd would have started because the package has enabled it is started here.
func (g *guide) aptGet(ctx context.Context, n *lab.Node, words []string) error {
	command := strings.Join(words, " ")
	file := regexp.MustCompile(`\./vmlockd_VERSION_amd64\.deb$`)
	ours := file.MatchString(command)
	command = file.ReplaceAllLiteralString(command, "./"+g.deb)
	if _, err := succeeds(n.Shell(ctx, "cd / && DEBIAN_FRONTEND=noninteractive "+command)); err != nil || !ours {
		return err
	}
	if status, err := n.Service("vmlockd").Status(ctx); err == nil && status.State == lab.ProcessRunning {
		return nil
	}
	if _, err := n.MustSucceed(ctx, "test", "-L", "/etc/systemd/system/multi-user.target.wants/vmlockd.service"); err != nil {
		return fmt.Errorf("it is not enabled: %w", err)
	}
	return systemctl(ctx, n, "start", []string{"vmlockd"})
}

// edit sets a key in the configuration file that the package has installed, where the file has it with its default.
func edit(ctx context.Context, n *lab.Node, file, setting string) error {
	b, err := n.ReadFile(ctx, file)
	if err != nil {
		return err
	}
	key, _, ok := strings.Cut(setting, " = ")
	line := regexp.MustCompile(`(?m)^#` + regexp.QuoteMeta(key) + ` = .*$`)
	if !ok || len(line.FindAll(b, -1)) != 1 {
		return fmt.Errorf("%q cannot be set in %s", setting, file)
	}
	return n.WriteFile(ctx, file, line.ReplaceAllLiteral(b, []byte(setting)), 0o644)
}

// buildDeb makes the package of what is checked out.
func buildDeb(t *testing.T) (path string) {
	t.Helper()
	cmd := exec.Command("../../scripts/deb", "amd64")
	cmd.Env = append(os.Environ(), "OUT="+t.TempDir(), "VERSION=guide", "DEB_VERSION=0.0~guide", "SOURCE_DATE_EPOCH=1700000000")
	var told strings.Builder
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, told.String())
	}
	return strings.TrimSpace(string(out))
}

// TestInstallGuideOnACluster does on three hosts, with stock libvirt, what docs/install.md says, line by line: with the
// package that "make deb" builds, and with what its units say, as there is no systemd in the nodes. One of them has had
// vmlockd before.
func TestInstallGuideOnACluster(t *testing.T) {
	cfg := lab.Config{
		Nodes: 3, MemoryMB: 1024, Libvirt: true, NoCluster: true, Modules: []string{"configfs"}, // sys-kernel-config.mount
		Files: map[string]string{"/etc/apt/apt.conf.d/99yes": "APT::Get::Assume-Yes \"true\";\n"},
	}
	lab.Need(t, cfg)
	built := buildDeb(t)
	g := &guide{page: read(t, "../../docs/install.md"), deb: filepath.Base(built), had: 3, other: 2}
	steps := g.steps(t)
	if len(steps) != 8 {
		t.Fatalf("there are %d steps", len(steps))
	}
	deb, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	g.Lab = lab.ForTest(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	typed := func(what string, lines []string) {
		t.Helper()
		g.each(t, what, func(n *lab.Node) error {
			for _, line := range lines {
				if err := g.types(ctx, n, line); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.each(t, "libvirt, and the package's file", func(n *lab.Node) error {
		// The names that the page has as examples.
		_, err := succeeds(n.Shell(ctx, fmt.Sprintf("hostname host%d && echo %s host%d >>/etc/hosts", n.ID(), n.Addr(), n.ID())))
		return errors.Join(err, n.WaitLibvirt(ctx), n.WriteFile(ctx, "/"+g.deb, deb, 0o644))
	})
	g.each(t, "One host", func(n *lab.Node) error {
		for _, line := range block(t, g.section(t, "## One host")) {
			if err := g.types(ctx, n, line+" # where it was "); err != nil {
				return err
			}
		}
		return nil
	})

	typed("1. corosync and dlm_controld", block(t, steps[0]))
	keygen, key := named(t, steps[1], "corosync-keygen"), named(t, steps[1], "/etc/corosync/authkey")
	if _, err := succeeds(g.Node(1).Shell(ctx, keygen)); err != nil {
		t.Fatal(err)
	}
	secret, err := g.Node(1).ReadFile(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	conf := named(t, steps[2], "/etc/corosync/corosync.conf")
	text := strings.Join(block(t, steps[2]), "\n") + "\n"
	g.each(t, "2. and 3. files of corosync", func(n *lab.Node) error {
		return errors.Join(n.WriteFile(ctx, key, secret, 0o400), n.WriteFile(ctx, conf, []byte(text), 0o644))
	})
	typed("4. no fencing", block(t, steps[3]))
	start := block(t, steps[4])
	typed("5. start", start[:1])
	g.each(t, "5. look", func(n *lab.Node) error {
		return lab.WaitFor(ctx, "all hosts in a quorate cluster", func(ctx context.Context) (bool, error) {
			res, err := n.Shell(ctx, start[1])
			return res.OK() && regexp.MustCompile(`(?m)^Quorate: +Yes$`).MatchString(res.Stdout) && regexp.MustCompile(`(?m)^Nodes: +3$`).MatchString(res.Stdout), err
		})
	})
	typed("5. dlm_controld answers", start[2:])
	typed("6. vmlockd", block(t, steps[5]))

	one := g.section(t, "## One host")
	setting := block(t, one[strings.Index(one, "`/etc/libvirt/qemu.conf`"):])[0]
	other := named(t, one, `lock_manager = "dlm"`)
	restart := named(t, steps[6], "systemctl restart libvirtd")
	g.each(t, "7. lock_manager", func(n *lab.Node) error {
		const qemuConf = "/etc/libvirt/qemu.conf"
		b, err := n.ReadFile(ctx, qemuConf)
		if err != nil {
			return err
		}
		setting := setting
		if n.ID() == g.other {
			setting = other
		}
		// The lab has written "nop".
		b = regexp.MustCompile(`(?m)^lock_manager = .*$`).ReplaceAllLiteral(b, []byte(setting))
		if !strings.Contains(string(b), "\n"+setting+"\n") && !strings.HasPrefix(string(b), setting+"\n") {
			return fmt.Errorf("%s: %s", qemuConf, b)
		}
		if err := n.WriteFile(ctx, qemuConf, b, 0o644); err != nil {
			return err
		}
		return errors.Join(g.types(ctx, n, restart), n.WaitLibvirt(ctx))
	})
	doctor := named(t, steps[7], "vmlockctl doctor")
	g.each(t, "8. look", func(n *lab.Node) error {
		// A guard that has begun before all hosts were there may wait for one of them, a minute by default.
		ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		said := ""
		err := lab.WaitFor(ctx, "a host without findings", func(ctx context.Context) (bool, error) {
			res, err := n.Shell(ctx, doctor)
			said = res.String()
			return res.OK(), err
		})
		t.Logf("%s: %s: %s", n.Name(), doctor, said)
		return err
	})
	g.tryIt(ctx, t)
}

// tryIt is the last step: a virtual machine, and a copy of it with the same disk on another host.
func (g *guide) tryIt(ctx context.Context, t *testing.T) {
	disk := filepath.Join(lab.SharedDir, "web.img")
	if err := os.WriteFile(filepath.Join(g.Shared(), "web.img"), lab.IdleGuest(), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := lab.Domain{Name: "web", Disks: []lab.Disk{{Path: disk}}}
	if _, err := succeeds(g.Node(1).Create(ctx, vm)); err != nil {
		t.Fatal(err)
	}
	// A refusal does not wait for longer than 300 ms for the host that knows the name, and says "is locked: held on another host" without it.
	var copied lab.Result
	err := lab.WaitFor(ctx, "a refusal that names the virtual machine", func(context.Context) (bool, error) {
		var err error
		copied, err = g.Node(2).Create(ctx, vm)
		if err == nil && (copied.OK() || !strings.Contains(copied.Stderr, "' is locked")) {
			err = errors.New("it is not refused as locked")
		}
		return strings.Contains(copied.Stderr, "is locked by virtual machine web (") && strings.Contains(copied.Stderr, "on host host1 (node 1)"), err
	})
	if err != nil {
		t.Errorf("a copy on another host: %v: %v", err, copied)
	}
	for _, n := range g.Nodes() {
		out, err := succeeds(n.Exec(ctx, "vmlockctl", "status"))
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: %s", n.Name(), out)
	}

	remove := named(t, g.section(t, "## Removal, and back to virtlockd"), "apt-get remove vmlockd")
	err = g.types(ctx, g.Node(1), remove)
	if err == nil || !strings.Contains(err.Error(), "It is not removed") || !strings.Contains(err.Error(), "it holds 1 locks") {
		t.Errorf("%s while a virtual machine runs: %v", remove, err)
	}
	res, err := g.Node(2).Create(ctx, vm)
	if err != nil || res.OK() {
		t.Errorf("a copy on another host when a removal was refused: %v, %v", res, err)
	}
	if _, err := succeeds(g.Node(1).Destroy(ctx, vm.Name)); err != nil {
		t.Error(err)
	}
	if _, err := succeeds(g.Node(2).Create(ctx, vm)); err != nil {
		t.Errorf("the disk is free: %v", err)
	}
}
