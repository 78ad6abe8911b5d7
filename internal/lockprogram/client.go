package lockprogram

import (
	"context"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// Client calls the lock space program. Its errors are those of rpc.Client.Call:
// an *rpc.Error is the daemon's answer.
type Client struct{ *rpc.Client }

// Dial connects to the lock daemon that listens at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := rpc.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

func (c *Client) call(ctx context.Context, procedure int32, args rpc.Marshaler) error {
	return c.Client.Call(ctx, ProgramNumber, Version, procedure, args, nil)
}

// Register says for whom this client acts from now on. An ID of 0 is refused.
func (c *Client) Register(ctx context.Context, o locking.Owner) error {
	return c.call(ctx, ProcRegister, &registerCall{owner: o})
}

// Restrict gives up the right to ask for anything more.
func (c *Client) Restrict(ctx context.Context) error {
	return c.call(ctx, ProcRestrict, new(flagsCall))
}

// NewLockspace makes a lockspace that must not exist.
func (c *Client) NewLockspace(ctx context.Context, path string) error {
	return c.call(ctx, ProcNew, &newCall{path: path})
}

// CreateLockspace makes a lockspace if it does not exist. It needs no owner.
func (c *Client) CreateLockspace(ctx context.Context, path string) error {
	return c.call(ctx, ProcCreateLockspace, pathCall(path))
}

// CreateResource makes a resource that can be acquired without FlagAutocreate.
func (c *Client) CreateResource(ctx context.Context, ref locking.Ref) error {
	return c.call(ctx, ProcCreateResource, &resourceCall{ref: ref})
}

// DeleteResource removes a resource.
func (c *Client) DeleteResource(ctx context.Context, ref locking.Ref) error {
	return c.call(ctx, ProcDeleteResource, &resourceCall{ref: ref})
}

// Acquire takes the lock of a resource. flags are FlagShared and FlagAutocreate.
func (c *Client) Acquire(ctx context.Context, ref locking.Ref, flags uint32) error {
	return c.call(ctx, ProcAcquireResource, &resourceCall{ref: ref, flags: flags})
}

// Release gives it back.
func (c *Client) Release(ctx context.Context, ref locking.Ref) error {
	return c.call(ctx, ProcReleaseResource, &resourceCall{ref: ref})
}

type registerCall struct {
	owner locking.Owner
	flags uint32
}

func (a *registerCall) EncodeXDR(e *rpc.Encoder) {
	e.Opaque(a.owner.UUID[:])
	e.String(a.owner.Name)
	e.Uint32(a.owner.ID)
	e.Int32(a.owner.PID)
	e.Uint32(a.flags)
}

type flagsCall struct{ flags uint32 }

func (a *flagsCall) EncodeXDR(e *rpc.Encoder) { e.Uint32(a.flags) }

type newCall struct {
	path  string
	flags uint32
}

func (a *newCall) EncodeXDR(e *rpc.Encoder) {
	e.String(a.path)
	e.Uint32(a.flags)
}

type pathCall string

func (a pathCall) EncodeXDR(e *rpc.Encoder) { e.String(string(a)) }

type resourceCall struct {
	ref   locking.Ref
	flags uint32
}

func (a *resourceCall) EncodeXDR(e *rpc.Encoder) {
	e.String(a.ref.Lockspace)
	e.String(a.ref.Name)
	e.Uint32(a.flags)
}
