package lab

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ofNode is a member of the change under way in what "dlm_tool ls -n" says of a lockspace, or of the last one where none is. A
// member of which a message was refused is number -1.
var ofNode = regexp.MustCompile(`(?m)^nodeid (\d+) member (-?1) failed \d+ start ([01]) `)

// Awaiting lists, by what "dlm_tool ls -n" says on each node of one lockspace, the nodes whose dlm_controld waits for messages, and
// those of them that have refused what they wait for, and so wait for ever (docs/chaos.md): they wait for their own, which goes over
// no network, or have marked another one as refused, or wait for a node that is in no change.
func Awaiting(said map[int]string) (all, refusing []int) {
	for _, id := range slices.Sorted(maps.Keys(said)) {
		if !strings.Contains(said[id], "wait messages") {
			continue
		}
		all = append(all, id)
		if slices.ContainsFunc(ofNode.FindAllStringSubmatch(said[id], -1), func(m []string) bool {
			of, _ := strconv.Atoi(m[1]) // digits, or 0
			idle := strings.Contains(said[of], "\nname ") && !strings.Contains(said[of], "\nnew change ")
			return m[2] == "-1" || m[3] == "0" && (of == id || idle)
		}) {
			refusing = append(refusing, id)
		}
	}
	return all, refusing
}
