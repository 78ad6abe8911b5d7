// Command peersnode is what a daemon does with its peers, and nothing else: it joins the group, holds locks that it makes
// up, and answers JSON over HTTP on a unix socket:
//
//	peersnode SOCKET HOST-NAME LOCKS
//
//	/members             the members of the group
//	/holdings            what all hold, asked with the patience it has by itself
//	/holders?resource=R  who holds one, asked with 0.3 s
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/peers"
)

// Answer is what is printed.
type Answer struct {
	Took    time.Duration // by this node's clock
	Stalled time.Duration // of that, how long this process was not run at all
	Err     string        `json:",omitempty"`
	Members []peers.Peer  `json:",omitempty"`
	Nodes   []Node        `json:",omitempty"`
	Holders []peers.Holding
}

// Node is a peers.NodeHoldings, whose errors JSON does not have.
type Node struct {
	Node     uint32
	Name     string
	Holdings []peers.Holding
	Err      string `json:",omitempty"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peersnode:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: peersnode SOCKET HOST-NAME LOCKS")
	}
	socket, name := args[0], args[1]
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	held := []peers.Holding{{Resource: "common", Name: "/shared.img", Mode: "shared", OwnerName: "vm-" + name, OwnerPID: 7, Since: time.Now()}}
	for i := range n {
		held = append(held, peers.Holding{
			Resource: fmt.Sprintf("%s %d", name, i), Name: fmt.Sprintf("/dev/vg/%s-%d", name, i), Mode: "exclusive", OwnerName: fmt.Sprintf("vm-%s-%d", name, i),
			OwnerUUID: "6c6f636b-0000-4000-8000-000000000000", OwnerPID: 1000 + i, Since: time.Now(),
		})
	}
	g, err := corosync.Join(context.Background(), corosync.Host(), "vmlockd:test", peers.GroupOptions())
	if err != nil {
		return err
	}
	p := peers.New(peers.Options{
		Group: g, Self: peers.Info{Name: name, Version: "test", Started: time.Now()}, Holdings: func() []peers.Holding { return held },
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	go func() {
		err := p.Run(context.Background())
		fmt.Fprintln(os.Stderr, "peersnode: the group has ended:", err)
		os.Exit(1)
	}()
	stalls := watchStalls()
	answer := func(f func(r *http.Request, a *Answer)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var a Answer
			began, before := time.Now(), stalls.Load()
			f(r, &a)
			a.Took, a.Stalled = time.Since(began), time.Duration(stalls.Load()-before)
			_ = json.NewEncoder(w).Encode(a)
		}
	}
	http.HandleFunc("/members", answer(func(_ *http.Request, a *Answer) { a.Members = p.Members() }))
	http.HandleFunc("/holdings", answer(func(r *http.Request, a *Answer) {
		list, err := p.Holdings(context.WithoutCancel(r.Context()))
		if err != nil {
			a.Err = err.Error()
		}
		for _, n := range list {
			out := Node{Node: n.Node, Name: n.Name, Holdings: n.Holdings}
			if n.Err != nil {
				out.Err = n.Err.Error()
			}
			a.Nodes = append(a.Nodes, out)
		}
	}))
	http.HandleFunc("/holders", answer(func(r *http.Request, a *Answer) {
		ctx, cancel := context.WithTimeout(r.Context(), 300*time.Millisecond)
		defer cancel()
		a.Holders, _ = p.Holders(ctx, r.FormValue("resource"))
	}))
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(l, nil)
}

// watchStalls adds up how much longer than asked for a short sleep took.
func watchStalls() *atomic.Int64 {
	const nap = 20 * time.Millisecond
	total := new(atomic.Int64)
	go func() {
		for {
			began := time.Now()
			time.Sleep(nap) // what is measured: how much longer than this it takes
			if over := time.Since(began) - nap; over > 20*time.Millisecond {
				total.Add(int64(over))
			}
		}
	}()
	return total
}
