package journal

import (
	"fmt"
	"strings"
)

// Damage is what was wrong with the file that Open found.
type Damage struct {
	// Unknown: records are missing or were not understood. There may be locks that
	// no entry explains. An entry may stand for a lock that was released, and may
	// have come further than its State says: one that is intended may be granted,
	// and its client may have been told. It stays set, over restarts, until
	// Journal.Settled is called.
	Unknown bool
	// Tail is how many bytes of a record were removed that was cut short at the end
	// of the file: the process was killed while it wrote, and nobody was told that
	// it had succeeded. Nothing is missing because of it.
	Tail int64
	// Missing: this boot had a journal and its file does not exist any more.
	Missing bool
	// OtherBoot is the id of the boot that the file was of, if it was another one.
	// Its locks ended with that boot.
	OtherBoot string
	// Aside is where the file that was found is now, if it is not in use any more.
	Aside string
	// Regions are the parts of it that were not understood, the first maxNotes of them.
	Regions []Region
	// Notes say for people what was wrong, one line each, maxNotes of them at most.
	Notes []string
	// More is how many further notes there would be.
	More int
	// Earlier says what an earlier Open found, if that was not settled.
	Earlier string
}

// Region is a part of a file, in bytes.
type Region struct{ Offset, Length int64 }

const maxNotes = 32

func (d *Damage) any() bool {
	return d.Unknown || d.Tail > 0 || d.OtherBoot != "" || len(d.Notes) > 0
}

func (d *Damage) note(text string) {
	if len(d.Notes) == maxNotes {
		d.More++
		return
	}
	d.Notes = append(d.Notes, text)
}

func (d *Damage) unknown(text string) {
	d.Unknown = true
	d.note(text)
}

func (d *Damage) region(off, n int64) {
	if len(d.Regions) < maxNotes {
		d.Regions = append(d.Regions, Region{off, n})
	}
}

// reason is what a later Open says as Earlier, if this is not settled.
func (d *Damage) reason() string {
	s := strings.Join(d.Notes, ", ")
	if d.Aside != "" {
		s = d.Aside + ": " + s
	}
	return cutTo(s, 2048)
}

// String is for the log: one line that says what was found and where it is.
func (d *Damage) String() string {
	var parts []string
	if d.Tail > 0 {
		parts = append(parts, fmt.Sprintf("the last record was cut short, its %d bytes are removed", d.Tail))
	}
	if d.OtherBoot != "" {
		parts = append(parts, "the journal is of another boot ("+d.OtherBoot+")")
	}
	parts = append(parts, d.Notes...)
	if d.More > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", d.More))
	}
	if d.Earlier != "" {
		parts = append(parts, "not settled since an earlier start: "+d.Earlier)
	}
	if d.Aside != "" {
		parts = append(parts, "the file is kept as "+d.Aside)
	}
	if d.Unknown {
		parts = append(parts, "there may be locks that no entry explains")
	}
	return strings.Join(parts, "; ")
}
