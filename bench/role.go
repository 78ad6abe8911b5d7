package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"

	"github.com/vmlockd/vmlockd/lab"
)

// role is what this program is in a node, with --inside.
var role = flag.String("role", "", "with --inside: what to be there, which only the bench itself asks for")

// Roles.
const (
	roleHold   = "hold"   // holds what is mastered on the other node
	roleEnter  = "enter"  // makes the node a member of the bare lockspace
	roleFill   = "fill"   // takes the locks of a node that is to lose its power
	roleHeir   = "heir"   // takes them after that
	roleQuorum = "quorum" // takes a lock as soon as there is quorum again
)

// readyLine is what a role says when it is ready for what is to happen to it.
const readyLine = "bench: ready"

// play plays the role.
func play(ctx context.Context) error {
	switch *role {
	case roleHold:
		return holdElsewhere(ctx)
	case roleEnter:
		return enterBare(ctx)
	case roleFill:
		return fillMany(ctx)
	case roleHeir:
		return inherit(ctx)
	case roleQuorum:
		return awaitQuorum(ctx)
	}
	return fmt.Errorf("--role %q: no such role", *role)
}

// startRole starts this program in a node, and returns when it is ready. name must not
// have been used in this lab.
func startRole(ctx context.Context, n *lab.Node, name, role string, args ...string) (*lab.Process, error) {
	return startReady(ctx, n, name, []string{"HOME=/root"}, append([]string{"bench", "--inside", "--role", role}, args...)...)
}

// startReady starts a program that says readyLine.
func startReady(ctx context.Context, n *lab.Node, name string, env []string, args ...string) (*lab.Process, error) {
	p, err := n.StartEnv(ctx, name, env, args[0], args[1:]...)
	if err != nil {
		return nil, err
	}
	err = lab.WaitFor(ctx, name+" to be ready", func(ctx context.Context) (bool, error) {
		log, err := p.Log(ctx)
		if err != nil && !errors.Is(err, lab.ErrNotFound) {
			return false, err
		}
		if strings.Contains(string(log), readyLine) {
			return true, nil
		}
		if st, err := p.Status(ctx); err == nil && st.State == lab.ProcessExited {
			return false, fmt.Errorf("it has ended with status %d: %s", st.Status, log)
		}
		return false, nil
	})
	return p, err
}
