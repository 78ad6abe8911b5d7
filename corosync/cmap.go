package corosync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of the cmap: corosync's for keys (CMAP_KEYNAME_MINLEN and _MAXLEN), this package's for the rest.
const (
	minKey, maxKey = 3, 255
	maxValue       = 64 << 10
	maxKeys        = 16384
)

// Value is what a key has: text, or a number. Values of other types (floating point, binary) are text in Go's syntax.
type Value struct {
	text   string
	number uint64
	kind   valueKind
}

type valueKind uint8

const (
	kindText valueKind = iota
	kindUint
	kindInt // negative
)

// TextValue and UintValue make values, for simulations.
func TextValue(s string) Value { return Value{text: s} }

// UintValue makes the value of an unsigned number.
func UintValue(n uint64) Value { return Value{number: n, kind: kindUint} }

// IntValue makes the value of a signed number.
func IntValue(n int64) Value {
	if n >= 0 {
		return UintValue(uint64(n))
	}
	return Value{number: uint64(n), kind: kindInt}
}

// String is the value as text.
func (v Value) String() string {
	switch v.kind {
	case kindUint:
		return strconv.FormatUint(v.number, 10)
	case kindInt:
		return strconv.FormatInt(int64(v.number), 10)
	}
	return v.text
}

// Uint is the value as a number: itself, or text of decimal digits. It is false for anything else, negative ones included.
func (v Value) Uint() (uint64, bool) {
	switch v.kind {
	case kindUint:
		return v.number, true
	case kindInt:
		return 0, false
	}
	n, err := strconv.ParseUint(v.text, 10, 64)
	return n, err == nil
}

// Cmap reads corosync's configuration map: what corosync.conf says (totem.cluster_name, nodelist.node.0.name), and what
// follows from it (runtime.config.totem.token). It connects anew for each question, so there is nothing to close and a
// restart of corosync does not matter. Questions wait for each other.
type Cmap struct {
	sys  System
	turn chan struct{} // holds a token while a question is under way, also one whose caller has gone
}

// NewCmap makes a Cmap.
func NewCmap(sys System) *Cmap { return &Cmap{sys: sys, turn: make(chan struct{}, 1)} }

// Get returns the value of a key. ErrNoKey if there is none.
func (c *Cmap) Get(ctx context.Context, key string) (Value, error) {
	if err := checkKey(key, minKey); err != nil {
		return Value{}, fault("cmap", key, err)
	}
	return question(ctx, c, key, func(m Map) (Value, error) { return m.Get(key) })
}

// String is Get for a key that has text.
func (c *Cmap) String(ctx context.Context, key string) (string, error) {
	v, err := c.Get(ctx, key)
	return v.String(), err
}

// Uint32 is Get for a key that has a number of 32 bits, such as a time in milliseconds.
func (c *Cmap) Uint32(ctx context.Context, key string) (uint32, error) {
	v, err := c.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	n, ok := v.Uint()
	if !ok || n > 1<<32-1 {
		return 0, fault("cmap", key, fmt.Errorf("%w: its value %q is no number of 32 bits", ErrInvalid, v.String()))
	}
	return uint32(n), nil
}

// List returns all keys that begin with prefix, with their values. A key that ends to exist meanwhile is left out. There
// are never more than 16384; a map with more is an error.
func (c *Cmap) List(ctx context.Context, prefix string) (map[string]Value, error) {
	if err := checkKey(prefix, 0); err != nil {
		return nil, fault("cmap", prefix, err)
	}
	return question(ctx, c, prefix, func(m Map) (map[string]Value, error) {
		keys, err := m.Keys(prefix, maxKeys+1)
		if err != nil {
			return nil, err
		}
		if len(keys) > maxKeys {
			return nil, fmt.Errorf("%w: more than %d keys", ErrInvalid, maxKeys)
		}
		all := make(map[string]Value, len(keys))
		for _, key := range keys {
			v, err := m.Get(key)
			if err == nil {
				all[key] = v
			} else if !errors.Is(err, ErrNoKey) {
				return nil, err
			}
		}
		return all, nil
	})
}

// ConfiguredNode is a node of the configuration, whether it runs or not.
type ConfiguredNode struct {
	ID   uint32
	Name string // empty if the configuration has none
	Addr string // ring0_addr
}

// Nodes are the nodes of the configuration (nodelist.node.*), by id. Those without a nodeid are left out.
func (c *Cmap) Nodes(ctx context.Context) ([]ConfiguredNode, error) {
	const prefix = "nodelist.node."
	all, err := c.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var nodes []ConfiguredNode
	for key, v := range all {
		place, isID := strings.CutSuffix(key, ".nodeid")
		id, ok := v.Uint()
		if !isID || !ok || id == 0 || id > 1<<32-1 {
			continue
		}
		nodes = append(nodes, ConfiguredNode{ID: uint32(id), Name: all[place+".name"].String(), Addr: all[place+".ring0_addr"].String()})
	}
	slices.SortFunc(nodes, func(a, b ConfiguredNode) int { return int(int64(a.ID) - int64(b.ID)) })
	return nodes, nil
}

func checkKey(key string, shortest int) error {
	if len(key) < shortest || len(key) > maxKey || strings.ContainsRune(key, 0) {
		return fmt.Errorf("%w: a key has %d to %d bytes, none of them 0", ErrInvalid, minKey, maxKey)
	}
	return nil
}

// question asks on a goroutine of its own.
func question[T any](ctx context.Context, c *Cmap, key string, ask func(Map) (T, error)) (T, error) {
	var zero T
	if err := loadable(c.sys); err != nil {
		return zero, fault("cmap", key, err)
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return zero, fault("cmap", key, ended(ctx, ErrNoAnswer))
	}
	type answer struct {
		v   T
		err error
	}
	got := make(chan answer, 1)
	go func() {
		defer func() { <-c.turn }()
		var a answer
		a.v, a.err = again(ctx, func() (T, error) {
			m, err := c.sys.OpenCmap()
			if err != nil {
				return zero, err
			}
			defer func() { _ = m.Close() }()
			return ask(m)
		})
		got <- a
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return zero, fault("cmap", key, a.err)
		}
		return a.v, nil
	case <-ctx.Done():
		return zero, fault("cmap", key, ended(ctx, ErrNoAnswer))
	}
}

// again repeats f while corosync says "try again" and ctx lasts.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for pause := minAgain; ; pause = min(2*pause, maxAgain) {
		v, err := f()
		if !errors.Is(err, ErrTryAgain) {
			return v, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return v, err
		}
	}
}
