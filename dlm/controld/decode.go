package controld

import (
	"bytes"
	"fmt"

	"github.com/vmlockd/vmlockd/dlm/controld/internal/wire"
)

// Bounds on what is read. The daemon keeps below them: DLMC_STATE_MAXSTR and DLMC_STATE_MAXBIN are 4096, and corosync
// has far fewer than 4096 nodes.
const (
	maxText    = 4096
	maxConfig  = 64 << 10
	maxNodes   = 4096
	maxSpaces  = 4096
	maxStates  = 2*maxNodes + 1
	maxRecords = max(maxNodes*wire.NodeSize, maxSpaces*wire.LockspaceSize)
)

func request(command uint32, name string, option uint32, data int32) []byte {
	h := wire.DlmcHeader{Magic: wire.Magic, Version: wire.Version, Command: command, Option: option, Len: wire.HeaderSize, Data: data}
	copy(h.Name[:], name)
	return wire.Append(nil, h)
}

// decodeHeader checks the header of an answer to command.
func decodeHeader(b []byte, command uint32) (wire.DlmcHeader, error) {
	h, err := wire.Decode[wire.DlmcHeader](b)
	switch {
	case err != nil:
		return h, malformed("a header of %d bytes", len(b))
	case h.Magic != wire.Magic:
		return h, malformed("magic number %#x", h.Magic)
	case h.Version>>16 != wire.Version>>16:
		return h, fmt.Errorf("%w: it speaks version %d.%d, this program %d.%d",
			ErrVersion, h.Version>>16, h.Version&0xffff, wire.Version>>16, wire.Version&0xffff)
	case h.Command != command:
		return h, malformed("an answer to command %d, not %d", h.Command, command)
	case h.Len < wire.HeaderSize:
		return h, malformed("an answer of %d bytes", h.Len)
	}
	return h, nil
}

// text is a C string in a field.
func text(field []byte) string {
	s, _, _ := bytes.Cut(field, []byte{0})
	return string(s)
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}
