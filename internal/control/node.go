package control

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// isNode says whether text means a node: by its number or its name. A node whose
// name is not known has none, so "" means nobody.
func isNode(text string, id uint32, name string) bool {
	return text != "" && text == name || isNumber(text, id)
}

func isNumber(text string, id uint32) bool {
	return id != 0 && text == strconv.FormatUint(uint64(id), 10)
}

// oneNode is the node that text means: by its number, else by its name. What is done
// to a node can destroy disks, so where a name is that of several, none is meant.
func oneNode(list []Member, text string) (*Member, *Error) {
	var named []*Member
	for i := range list {
		m := &list[i]
		if isNumber(text, m.NodeID) {
			return m, nil
		}
		if isNode(text, m.NodeID, m.Name) {
			named = append(named, m)
		}
	}
	switch len(named) {
	case 0:
		return nil, &Error{CodeNoNode, fmt.Sprintf("no node %q is known: 'vmlockctl status' lists the nodes", text)}
	case 1:
		return named[0], nil
	}
	var numbers []string
	for _, m := range named {
		numbers = append(numbers, fmt.Sprint(m.NodeID))
	}
	return nil, &Error{CodeBadRequest, fmt.Sprintf("several nodes have the name %q: say which one is meant by its number, %s", text, strings.Join(numbers, " or "))}
}

// nodes are those of the cluster, and with them any that has vanished and that nothing
// else tells of any more.
func (st *Status) nodes() []Member {
	list := slices.Clone(st.Members)
	if st.Cluster == nil || st.Cluster.Guard == nil {
		return list
	}
	for _, v := range st.Cluster.Guard.Vanished {
		if !slices.ContainsFunc(list, func(m Member) bool { return m.NodeID == v.NodeID }) {
			list = append(list, Member{NodeID: v.NodeID, Member: Unknown})
		}
	}
	return list
}

// nodeText is a node for people, with its name if that is known.
func (st *Status) nodeText(id uint32) string {
	for _, m := range st.Members {
		if m.NodeID == id && m.Name != "" {
			return fmt.Sprintf("%s (node %d)", m.Name, id)
		}
	}
	return fmt.Sprintf("node %d", id)
}

// failNode answers that a node is not known.
func failNode(w http.ResponseWriter, e *Error) {
	status := http.StatusNotFound
	if e.Code == CodeBadRequest {
		status = http.StatusBadRequest
	}
	fail(w, status, e.Code, e.Message)
}
