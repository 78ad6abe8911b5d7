//go:build !linux || !(amd64 || arm64)

package corosync

import (
	"fmt"
	"runtime"
)

// library: structs by value reach a callback in another way on each processor, and only two have been looked at.
type library struct{}

func (*library) load() error { return fmt.Errorf("not for %s on %s", runtime.GOOS, runtime.GOARCH) }

func (host) OpenCPG(string, func(Event)) (CPG, error) { return nil, Available() }
func (host) OpenQuorum(func(Event)) (Conn, error)     { return nil, Available() }
func (host) OpenCmap() (Map, error)                   { return nil, Available() }
