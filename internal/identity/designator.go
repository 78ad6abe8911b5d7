package identity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// pickDesignator reads page 0x83 of a SCSI unit's vital product data (SPC-4,
// 7.8.6) and writes the designator that the kernel would prefer as it writes it
// (designator_prio and scsi_vpd_lun_id in drivers/scsi/scsi_lib.c); "" if there is
// none. Of two that it likes equally the kernel takes the later one, and never a text
// that is shorter than what it has.
func pickDesignator(page []byte) string {
	if len(page) < 4 || page[1] != 0x83 {
		return ""
	}
	rest := page[4:]
	if n := int(binary.BigEndian.Uint16(page[2:])); n < len(rest) {
		rest = rest[:n]
	}
	best, priority, size := "", 0, 0
	for len(rest) >= 4 {
		n := int(rest[3])
		if len(rest)-4 < n {
			break
		}
		d := rest[:4+n]
		rest = rest[4+n:]
		p, kind := designatorPriority(d), d[1]&0xf
		if p == 0 || p < priority || n < size && (kind == 1 || kind == 8) {
			continue
		}
		priority, size = p, n
		if text := designatorText(d); text != "" {
			best = text
		}
	}
	return best
}

// designatorPriority is 0 for one that is not of the unit, or of no use.
func designatorPriority(d []byte) int {
	n := len(d) - 4
	if d[1]&0x30 != 0 || n == 0 {
		return 0
	}
	switch d[1] & 0xf {
	case 8: // a name string
		return 9
	case 3: // NAA
		return map[byte]int{6: 8, 5: 5, 4: 4, 3: 1}[d[4]>>4]
	case 2: // EUI-64
		return map[int]int{16: 7, 12: 6, 8: 3}[n]
	case 1: // vendor
		return 1
	}
	return 0
}

func designatorText(d []byte) string {
	value := d[4:]
	switch d[1] & 0xf {
	case 8:
		return strings.ToValidUTF8(string(bytes.TrimRight(value, "\x00")), "?")
	case 3:
		if len(value) != 8 && len(value) != 16 {
			return ""
		}
		return "naa." + hex.EncodeToString(value)
	case 2:
		return "eui." + hex.EncodeToString(value)
	case 1:
		return "t10." + escaped(value)
	}
	return ""
}

// escaped is what the kernel writes for %*pE: what cannot be printed as in C
// (string_escape_mem in lib/string_helpers.c).
func escaped(value []byte) string {
	var b strings.Builder
	for _, c := range value {
		switch i := strings.IndexByte("\x00\n\r\t\v\f\a\x1b", c); {
		case i >= 0:
			b.WriteByte('\\')
			b.WriteByte("0nrtvfae"[i])
		case c < ' ' || c >= 0x7f && c < 0xa0:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return strings.ToValidUTF8(b.String(), "?")
}
