package daemon

import (
	"context"
	"sync/atomic"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/identity"
	"github.com/vmlockd/vmlockd/internal/peers"
)

// disks is which disk a path is on this host, for the backend, for operators and for
// other hosts.
type disks struct {
	resolver *identity.Resolver
	// resource is the name in the DLM; nil without one, or before there is a backend.
	resource atomic.Pointer[func(context.Context, cluster.Disk) (string, error)]
}

func newDisks(c config.Config) *disks {
	return &disks{resolver: identity.New(identity.Options{Rules: c.Identity.List()})}
}

// forBackend implements cluster.Options.Identify.
func (d *disks) forBackend(ctx context.Context, path string) (cluster.Disk, error) {
	id, err := d.resolver.Identify(ctx, path)
	if err != nil {
		return cluster.Disk{}, err
	}
	return diskOf(id), nil
}

func diskOf(id identity.Identity) cluster.Disk {
	return cluster.Disk{Name: id.Name, Here: id.Scope == identity.Host, Local: id.Local, ByPath: id.ByPath}
}

// Identify implements control.Disks.
func (d *disks) Identify(ctx context.Context, path string) control.Disk {
	id, err := d.resolver.Identify(ctx, path)
	out := control.Disk{Path: id.Path, Type: id.Type, Steps: id.Steps}
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Scope, out.Name, out.ByPath, out.Doubt = id.Scope.String(), id.Name, id.ByPath, id.Doubt
	if f := d.resource.Load(); f != nil {
		// Without one it is locked under none, and that is told by what refuses the lock.
		out.Resource, _ = (*f)(ctx, diskOf(id))
	}
	return out
}

// forPeer implements peers.Options.Identify.
func (d *disks) forPeer(ctx context.Context, path string) peers.Disk {
	c := d.Identify(ctx, path)
	return peers.Disk{
		Path: c.Path, Type: c.Type, Scope: c.Scope, Name: c.Name, Resource: c.Resource, ByPath: c.ByPath, Doubt: c.Doubt,
		Steps: c.Steps, Error: c.Error,
	}
}
