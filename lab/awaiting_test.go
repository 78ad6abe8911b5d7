package lab_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmlockd/vmlockd/lab"
)

func TestAwaiting(t *testing.T) {
	a, err := txtar.ParseFile("testdata/dlm_tool.txtar")
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]map[int]string{}
	for _, f := range a.Files {
		state, number, _ := strings.Cut(f.Name, "/")
		id, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		if states[state] == nil {
			states[state] = map[int]string{}
		}
		states[state][id] = string(f.Data)
	}
	for _, tc := range []struct {
		state         string
		all, refusing []int
	}{
		{"well", nil, nil},
		{"waits", []int{1, 2}, nil}, // dlm_controld of node 3 stands still
		{"own", []int{1, 3}, []int{1}},
		{"two", []int{1, 3}, []int{1, 3}},
		{"spread", []int{1, 2}, []int{2}}, // node 2 has refused node 1's as well
	} {
		said := states[tc.state]
		if len(said) == 0 {
			t.Fatalf("there is no state %q", tc.state)
		}
		all, refusing := lab.Awaiting(said)
		if !slices.Equal(all, tc.all) || !slices.Equal(refusing, tc.refusing) {
			t.Errorf("%s: %v wait, %v have refused; want %v and %v", tc.state, all, refusing, tc.all, tc.refusing)
		}
	}
	// A node may have its own message, and have refused another one's.
	said := map[int]string{1: states["spread"][1], 2: strings.Replace(states["spread"][2], "nodeid 2 member 1 failed 0 start 0", "nodeid 2 member 1 failed 0 start 1", 1)}
	if _, refusing := lab.Awaiting(said); !slices.Equal(refusing, []int{2}) {
		t.Errorf("node 2 has refused another one's message: %v have refused", refusing)
	}
	// A node that waits for one which is in no change has refused that one's message; if that one says nothing, nobody knows.
	said = map[int]string{1: states["waits"][1], 2: states["waits"][2], 3: states["well"][3]}
	if _, refusing := lab.Awaiting(said); !slices.Equal(refusing, []int{1, 2}) {
		t.Errorf("node 3 is in no change: %v have refused", refusing)
	}
	said[3] = "dlm lockspaces\n"
	if _, refusing := lab.Awaiting(said); len(refusing) != 0 {
		t.Errorf("node 3 has no lockspace: %v have refused", refusing)
	}
}
