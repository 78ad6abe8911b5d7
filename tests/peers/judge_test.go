package peers_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vmlockd/vmlockd/internal/control"
)

// What commands print of three hosts, of which each holds a disk of its own for 'heldN'. These need no lab.

// statusIncomplete is vmlockctl's exit status when not every host has answered.
const statusIncomplete = 5

var (
	// errHides is an answer that does not say who is missing, at which an operator would take a part for the whole.
	errHides = errors.New("it hides that a host is missing")
	// errLess is one without a host that is there. A busy machine may bring that about, and so does corosync, which lets nobody
	// be heard from the loss of a host until it has noticed.
	errLess = errors.New("it lacks a host that is there")
)

// judge checks what a command has printed, as JSON, with its exit status, where the hosts of gone do not answer. said is why
// that is so of the first of them, as far as the command tells.
func judge(command string, status int, text []byte, gone ...uint32) (said string, err error) {
	isGone := func(id uint32) bool { return slices.Contains(gone, id) }
	hides := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", errHides, fmt.Sprintf(format, args...))
	}
	less := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", errLess, fmt.Sprintf(format, args...))
	}
	if command == "status" {
		var st control.Status
		switch err := json.Unmarshal(text, &st); {
		case err != nil:
			return "", err
		case status != 0 && len(gone) == 0: // the daemon is being started
			return "", less("exit status %d", status)
		case status != 0:
			return "", fmt.Errorf("exit status %d", status)
		}
		for id := uint32(1); id <= nodes; id++ {
			i := slices.IndexFunc(st.Members, func(m control.Member) bool { return m.NodeID == id })
			switch {
			case i < 0 && isGone(id):
				return "", hides("node %d is not there at all", id)
			case i < 0:
				err = less("node %d is not there at all", id)
			case isGone(id) && st.Members[i].Version != "" && !st.Members[i].Silent:
				return "", hides("node %d is said to run vmlockd and to answer", id)
			case !isGone(id) && (st.Members[i].Version == "" || st.Members[i].Silent):
				err = less("node %d is said to be silent", id)
			}
		}
		return "", err
	}
	var a struct {
		Holders []control.Holder
		Disks   []control.Disk
		Missing []control.Missing
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return "", err
	}
	for i, id := range gone {
		k := slices.IndexFunc(a.Missing, func(m control.Missing) bool { return m.NodeID == id })
		if k < 0 || a.Missing[k].Error == "" || a.Missing[k].Node != fmt.Sprint("node", id) || status != statusIncomplete {
			return "", hides("node %d, exit status %d, missing %+v", id, status, a.Missing)
		}
		if i == 0 {
			said = a.Missing[k].Error
		}
	}
	if len(a.Missing) > len(gone) || len(gone) == 0 && status != 0 {
		return said, less("exit status %d, missing %+v", status, a.Missing)
	}
	for id := uint32(1); id <= nodes; id++ {
		held := slices.IndexFunc(a.Holders, func(h control.Holder) bool {
			return h.NodeID == id && h.VM == fmt.Sprint("held", id)
		})
		known := slices.IndexFunc(a.Disks, func(d control.Disk) bool { return d.NodeID == id && d.Error == "" && !d.Differs })
		switch {
		case isGone(id) && (held >= 0 || known >= 0):
			return said, hides("node %d has not answered, and is shown", id)
		case isGone(id):
		case command == "ls" && held < 0, command == "who" && id == shown(gone) && held < 0, command == "identify" && known < 0:
			return said, less("nothing of node %d", id)
		}
	}
	return said, nil
}

// shown is the last host that is not gone: its disk is asked for.
func shown(gone []uint32) uint32 {
	id := uint32(nodes)
	for slices.Contains(gone, id) {
		id--
	}
	return id
}

func TestJudge(t *testing.T) {
	holders := func(ids ...uint32) (list []control.Holder) {
		for _, id := range ids {
			list = append(list, control.Holder{NodeID: id, VM: fmt.Sprint("held", id), Resource: diskOf(id)})
		}
		return list
	}
	disks := func(ids ...uint32) (list []control.Disk) {
		for _, id := range ids {
			list = append(list, control.Disk{NodeID: id})
		}
		return list
	}
	missing := func(ids ...uint32) (list []control.Missing) {
		for _, id := range ids {
			list = append(list, control.Missing{NodeID: id, Node: fmt.Sprint("node", id), Error: "no answer in time"})
		}
		return list
	}
	member := func(id uint32, version string, silent bool) control.Member {
		return control.Member{NodeID: id, Version: version, Silent: silent}
	}
	two := []control.Member{member(1, "v", false), member(2, "v", false)}
	for i, c := range []struct {
		command string
		status  int
		answer  any
		gone    []uint32
		want    error
	}{
		{"ls", 5, control.Holders{Holders: holders(1, 2), Missing: missing(3)}, []uint32{3}, nil},
		{"ls", 5, control.Holders{Holders: holders(3), Missing: missing(1, 2)}, []uint32{1, 2}, nil},
		{"ls", 0, control.Holders{Holders: holders(1, 2, 3)}, nil, nil},
		{"ls", 0, control.Holders{Holders: holders(1, 2), Missing: missing(3)}, []uint32{3}, errHides},
		{"ls", 0, control.Holders{Holders: holders(1, 2)}, []uint32{3}, errHides},
		{"ls", 5, control.Holders{Holders: holders(1, 2), Missing: []control.Missing{{NodeID: 3, Node: "node3"}}}, []uint32{3}, errHides},
		{"ls", 5, control.Holders{Holders: holders(1, 2, 3), Missing: missing(3)}, []uint32{3}, errHides},
		{"ls", 5, control.Holders{Holders: holders(1), Missing: missing(2, 3)}, []uint32{3}, errLess},
		{"ls", 5, control.Holders{Holders: holders(1), Missing: missing(3)}, []uint32{3}, errLess},
		{"ls", 0, control.Holders{Holders: holders(1, 2)}, nil, errLess},
		{"who", 5, control.Holders{Holders: holders(2), Missing: missing(3)}, []uint32{3}, nil},
		{"who", 5, control.Holders{Missing: missing(3)}, []uint32{3}, errLess},
		{"who", 0, control.Holders{Holders: holders(2)}, []uint32{3}, errHides},
		{"identify", 5, control.Identified{Disks: disks(1, 2), Missing: missing(3)}, []uint32{3}, nil},
		{"identify", 5, control.Identified{Disks: disks(1), Missing: missing(3)}, []uint32{3}, errLess},
		{"identify", 0, control.Identified{Disks: disks(1, 2)}, []uint32{3}, errHides},
		{"status", 0, control.Status{Members: append(two, member(3, "v", true))}, []uint32{3}, nil},
		{"status", 0, control.Status{Members: append(two, member(3, "", false))}, []uint32{3}, nil},
		{"status", 0, control.Status{Members: append(two, member(3, "v", false))}, []uint32{3}, errHides},
		{"status", 0, control.Status{Members: two}, []uint32{3}, errHides},
		{"status", 0, control.Status{Members: append(two, member(3, "v", true))}, nil, errLess},
		{"status", 3, control.Failure{}, nil, errLess},
	} {
		text, err := json.Marshal(c.answer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := judge(c.command, c.status, text, c.gone...); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("case %d, %s: %v, want %v: %s", i, c.command, err, c.want, text)
		}
	}
}
