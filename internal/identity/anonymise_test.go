package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// anonymiser replaces what tells whose machine, disk or file something is. Each
// replacement is a function of the value alone, so that the captures of two hosts agree
// on what they have in common; it has the same shape; and what the product makes of
// several values, such as the numbers that NFSv3 and NFSv4 have for one file system,
// is made of their replacements too.
//
// It keeps numbers, the kernel's own names, and the words in vocabulary: a capture is
// read by somebody before it is published.
type anonymiser struct {
	from map[string]string // replacement: what it stands for
	errs []error
}

func newAnonymiser() *anonymiser { return &anonymiser{from: map[string]string{}} }

// vocabulary are words that tell nothing: of the kernel and of tools, and those that the
// tests use, whose machines have no secrets.
var vocabulary = func() map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(`dev mapper disk by id res block partition part file overlay on uuid name rule cmdline
		sys proc fs self bus devices volumes nfsfs mnt srv var lib libvirt images usr bin sbin run tmp opt home lab shared server
		export exp img own bound linked hard soft elsewhere web db moved vms one two here there other secret plain boot site
		nfs nfs3 nfs4 gfs gfs1 gfs2 ocfs ocfs1 ocfs2 cifs smb3 ceph gluster fuse glusterfs null lustre beegfs hostfs virtiofs 9p
		ext2 ext3 ext4 xfs btrfs tmpfs ramfs devtmpfs rootfs none root lower upper work dash node1 node2 node3 localhost example
		nbd client lvm lvs crypt luks luks1 luks2 mpath mpatha mpathb dm md drbd rbd loop scsi iscsi nvme multipath
		linux debug lio org fileio raid0 raid1 raid10 sub snap net tcp udp admin link global full buffered plain2 real cow pool vers true false yes seclabel inode64 serverino noserverino`) {
		m[w] = true
	}
	return m
}()

// kernelWord are names that the kernel counts.
var kernelWord = regexp.MustCompile(`^([0-9]+[kmgt]?|0x[0-9a-f]+|sd[a-z]+[0-9]*|ubd[a-z][0-9]*|vd[a-z]+[0-9]*|(dm|md|nbd|loop|drbd|rbd|part|unit)[0-9]+(p[0-9]+)?|nvme[0-9]+n[0-9]+(p[0-9]+)?)$`)

var partWord = regexp.MustCompile(`^part[0-9]+$`)

// What is replaced, in the order in which it is looked for.
var (
	special = strings.Join([]string{
		`[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}`,
		`[0-9a-f]{8}(?::[0-9a-f]{8}){3}`,
		`LVM-[0-9A-Za-z]{64}`,
		`lvm:[0-9A-Za-z]{32}/[0-9A-Za-z]{32}`,
		`mpath-3[0-9a-f]{16,32}`,
		`(?:naa|eui)\.[0-9A-Fa-f]+`,
		`(?:t10|nvme)\.[^\n]+`,
		`iqn\.[0-9]{4}-[0-9]{2}\.[0-9A-Za-z.:-]+`,
		`nfs:[0-9a-f]{16}`,
		`ocfs2:[0-9a-f]{16}`,
		`ceph:[0-9a-f]{8}\b`,
		`[0-9]+(?:\.[0-9]+){3}`,
		`(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}`,
		`\b[0-9A-Fa-f]{10,}\b`,
	}, "|")
	specialRE = regexp.MustCompile(special)
	textRE    = regexp.MustCompile(special + `|[0-9A-Za-z]+`)
	wordRE    = regexp.MustCompile(`[0-9A-Za-z]+`)
)

// text is what people and tools have written.
func (a *anonymiser) text(s string) string { return textRE.ReplaceAllStringFunc(s, a.token) }

// kernels is what the kernel has written, such as a path in sysfs.
func (a *anonymiser) kernels(s string) string { return specialRE.ReplaceAllStringFunc(s, a.token) }

// path is a path on the host, or one that is relative to it.
func (a *anonymiser) path(p string) string {
	switch {
	case strings.HasPrefix(p, "/sys/fs/"), !strings.HasPrefix(p, "/sys/"):
		return a.text(p)
	}
	return a.kernels(p)
}

// token replaces what textRE has found.
func (a *anonymiser) token(s string) string {
	cut := func(prefix string) (string, bool) { return strings.CutPrefix(s, prefix) }
	if rest, ok := cut("LVM-"); ok && len(rest) == 64 {
		return "LVM-" + a.letters(rest[:32]) + a.letters(rest[32:])
	}
	if rest, ok := cut("lvm:"); ok {
		return "lvm:" + a.letters(rest[:32]) + "/" + a.letters(rest[33:])
	}
	if rest, ok := cut("mpath-3"); ok {
		return "mpath-3" + a.hex(rest) // multipathd writes the type of an NAA designator before it
	}
	if rest, ok := cut("nfs:"); ok {
		n, _ := strconv.ParseUint(rest, 16, 64)
		n = a.fsid(n)
		return fmt.Sprintf("nfs:%016x", min(n, bits.ReverseBytes64(n)))
	}
	if rest, ok := cut("ceph:"); ok {
		to := hex.EncodeToString(stream("fold", rest, 4))
		return "ceph:" + a.note(rest, to, to)
	}
	if rest, ok := cut("ocfs2:"); ok {
		return "ocfs2:" + a.hex(rest)
	}
	for _, prefix := range []string{"naa.", "eui."} {
		if rest, ok := cut(prefix); ok {
			return prefix + a.hex(rest)
		}
	}
	for _, prefix := range []string{"t10.", "nvme."} {
		if rest, ok := cut(prefix); ok {
			return prefix + wordRE.ReplaceAllStringFunc(rest, func(w string) string {
				if partWord.MatchString(w) {
					return w // which the product has added
				}
				return a.letters(w)
			})
		}
	}
	if rest, ok := cut("iqn."); ok {
		return "iqn." + a.iqn(rest)
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		return a.ip(ip).String()
	}
	if len(hexDigits(s)) == 32 && len(s) >= 32 {
		return a.hex(s) // a UUID in any of its three shapes
	}
	if len(s) >= 10 && strings.Trim(s, "0123456789abcdefABCDEF") == "" && strings.Trim(s, "0123456789") != "" {
		return a.hex(s)
	}
	return wordRE.ReplaceAllStringFunc(s, a.word)
}

func (a *anonymiser) word(s string) string {
	lower := strings.ToLower(s)
	if len(s) <= 2 || vocabulary[lower] || kernelWord.MatchString(lower) {
		return a.note(lower, lower, s)
	}
	return a.letters(s)
}

// letters has a letter for each letter and a digit for each digit. Words that differ in
// case only do so afterwards, as some names are compared without it.
func (a *anonymiser) letters(s string) string {
	lower := strings.ToLower(s)
	key := lower
	if len(s) == 32 { // LVM's ids are of letters of both kinds
		key = s
	}
	out, random := []byte(s), stream("letters", key, len(s))
	for i, c := range out {
		switch {
		case c >= '0' && c <= '9':
			out[i] = '0' + random[i]%10
		case c >= 'a' && c <= 'z':
			out[i] = 'a' + random[i]%26
		case c >= 'A' && c <= 'Z':
			out[i] = 'A' + random[i]%26
		}
	}
	return a.note(key, strings.ToLower(string(out)), string(out))
}

// hex has a digit for each hexadecimal digit, and the same for one number in whichever
// groups of digits it is written. The first digit stays: it says of which kind a WWID is.
// What is made of zeroes only is no number of anything.
func (a *anonymiser) hex(s string) string {
	digits := hexDigits(s)
	if strings.Trim(digits, "0") == "" {
		return s
	}
	random, i := hex.EncodeToString(stream("hex", digits, len(digits)))[1:], 0
	random = (digits[:1] + random)[:len(digits)]
	if len(digits) == 32 {
		random = withFold(random, a.fold(digits))
	}
	out := strings.Map(func(c rune) rune {
		if hexDigits(string(c)) == "" {
			return c
		}
		i++
		return rune(random[i-1])
	}, s)
	if strings.ToLower(s) != s {
		out = strings.ToUpper(out)
	}
	return a.note(digits, random, out)
}

// fold is what CephFS has of the UUID of its cluster (foldUUID), replaced.
func (a *anonymiser) fold(uuid string) uint32 {
	n, _ := foldUUID(uuid) // it is one
	return binary.BigEndian.Uint32(stream("fold", fmt.Sprintf("%08x", n), 4))
}

// withFold changes the last word of 32 digits so that the exclusive or of all is fold.
func withFold(digits string, fold uint32) string {
	n, _ := foldUUID(digits)
	b, _ := hex.DecodeString(digits)
	last := b[12:]
	binary.LittleEndian.PutUint32(last, binary.LittleEndian.Uint32(last)^n^fold)
	return hex.EncodeToString(b)
}

// fsid is a number that an NFS server has for a file system, or what NFSv3 makes of two:
// the two byte orders of one number stay that. Small ones somebody has configured, and
// they tell nothing.
func (a *anonymiser) fsid(n uint64) uint64 {
	least := min(n, bits.ReverseBytes64(n))
	if least < 1<<16 {
		return n
	}
	to := binary.BigEndian.Uint64(stream("fsid", strconv.FormatUint(least, 16), 8))
	a.note(fmt.Sprintf("%016x", least), fmt.Sprintf("%016x", to), "")
	if n != least {
		to = bits.ReverseBytes64(to)
	}
	return to
}

// fsids are the two numbers of NFSv4, whose exclusive or is that of NFSv3 (nfsFSID).
func (a *anonymiser) fsids(major, minor uint64) (uint64, uint64) {
	switch {
	case minor == 0, major == minor:
		major = a.fsid(major)
		return major, min(minor, 1) * major
	case max(major, minor) < 1<<16:
		return major, minor
	}
	first := binary.BigEndian.Uint64(stream("major", fmt.Sprintf("%x:%x", major, minor), 8))
	return first, first ^ a.fsid(major^minor)
}

// iqn keeps what is of example.org and the like (RFC 2606).
func (a *anonymiser) iqn(s string) string {
	date, name, _ := strings.Cut(s, ".")
	domain, _, _ := strings.Cut(name, ":")
	if slices.Contains(strings.Split(domain, "."), "example") {
		return a.note(strings.ToLower(s), strings.ToLower(s), s)
	}
	return date + "." + wordRE.ReplaceAllStringFunc(name, a.letters)
}

// ip is an address that nobody has: of those for documentation (RFC 5737, RFC 3849),
// and of those for benchmarks (RFC 2544), as there are more.
func (a *anonymiser) ip(ip netip.Addr) netip.Addr {
	for _, p := range []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32", "127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128"} {
		if netip.MustParsePrefix(p).Contains(ip) {
			a.note(ip.String(), ip.String(), "")
			return ip
		}
	}
	random := stream("ip", ip.String(), 16)
	to := netip.AddrFrom4([4]byte{198, 18 + random[0]&1, random[1], random[2]})
	if ip.Is6() {
		copy(random, []byte{0x20, 0x01, 0x0d, 0xb8})
		to = netip.AddrFrom16([16]byte(random))
	}
	a.note(ip.String(), to.String(), "")
	return to
}

// note remembers what a replacement stands for, and passes out on.
func (a *anonymiser) note(value, replacement, out string) string {
	if was, ok := a.from[replacement]; ok && was != value {
		a.errs = append(a.errs, fmt.Errorf("%q stands for two values: change the key of the anonymiser", replacement))
	}
	a.from[replacement] = value
	return out
}

// left are the values that have been replaced, and are in a text still.
func (a *anonymiser) left(text string) (found []string) {
	words := map[string]bool{}
	for _, w := range wordRE.FindAllString(strings.ToLower(text), -1) {
		words[w] = true
	}
	for _, s := range specialRE.FindAllString(text, -1) {
		words[hexDigits(s)], words[strings.ToLower(s)] = true, true
	}
	for replacement, value := range a.from {
		if replacement != value && (words[strings.ToLower(value)] || len(value) > 12 && strings.Contains(text, value)) {
			found = append(found, value)
		}
	}
	slices.Sort(found)
	return found
}

// stream is n bytes that depend on a value and what it is. The key is no secret: whoever
// has a value to try could try it.
func stream(kind, value string, n int) []byte {
	var out []byte
	for i := 0; len(out) < n; i++ {
		h := hmac.New(sha256.New, []byte("vmlockd captured trees"))
		fmt.Fprintf(h, "%s %d %s", kind, i, value)
		out = h.Sum(out)
	}
	return out[:n]
}

// content is what a file has. Some have other numbers in them than their text shows.
func (a *anonymiser) content(file string, data []byte) []byte {
	switch path.Base(file) {
	case "vpd_pg83":
		return a.page83(data)
	case "volumes":
		return []byte(nfsVolume.ReplaceAllStringFunc(string(data), a.volume))
	}
	return []byte(a.text(string(data)))
}

// nfsVolume is a line of /proc/fs/nfsfs/volumes: NFS's version, the server's address and port, the device, the fsid.
var nfsVolume = regexp.MustCompile(`(?m)^(v[0-9] )([0-9a-f]+)( +[0-9a-f]+ +[0-9]+:[0-9]+ +)([0-9a-f]+):([0-9a-f]+)( *)`)

func (a *anonymiser) volume(line string) string {
	f := nfsVolume.FindStringSubmatch(line)
	address, err := hex.DecodeString(f[2])
	ip, ok := netip.AddrFromSlice(address)
	if err != nil || !ok {
		a.errs = append(a.errs, fmt.Errorf("%q is no address of a server of NFS", f[2]))
		return ""
	}
	major, err1 := strconv.ParseUint(f[4], 16, 64)
	minor, err2 := strconv.ParseUint(f[5], 16, 64)
	if err1 != nil || err2 != nil {
		a.errs = append(a.errs, fmt.Errorf("%q is no fsid of NFS", line))
		return ""
	}
	x, y := a.fsids(major, minor)
	fsid := fmt.Sprintf("%x:%x", x, y)
	return f[1] + hex.EncodeToString(a.ip(ip).AsSlice()) + f[3] + fmt.Sprintf("%-*s", len(f[4])+1+len(f[5])+len(f[6]), fsid)
}

// page83 replaces the designators of a SCSI unit, as pickDesignator reads them, by what
// the kernel's text of them is replaced by.
func (a *anonymiser) page83(page []byte) []byte {
	page = slices.Clone(page)
	for at := 4; at+4 <= len(page); {
		value := page[at+4 : min(len(page), at+4+int(page[at+3]))]
		switch page[at+1] & 0xf {
		case 2, 3:
			b, _ := hex.DecodeString(a.hex(hex.EncodeToString(value)))
			copy(value, b)
		case 1, 8, 0:
			copy(value, a.text(string(value)))
		}
		at += 4 + int(page[at+3])
	}
	return page
}
