package cluster

import (
	"context"
	"errors"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld"
)

// Present is nil if this host has the parts that New wants: the DLM module, the
// privilege to use it, and a running dlm_controld. It changes nothing.
func Present(ctx context.Context) error {
	return present(ctx, dlm.Host(), controld.Host())
}

func present(ctx context.Context, k dlm.Kernel, c *controld.Client) error {
	device, err := k.Control()
	if err != nil {
		return err
	}
	device.Close()
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	if _, err := c.Status(ctx); errors.Is(err, controld.ErrNotRunning) {
		return dlm.ErrNoDaemon
	} else if err != nil {
		return err
	}
	return nil
}
