package admin_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	ap "github.com/vmlockd/vmlockd/internal/adminprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// rawCall is a call as bytes.
type rawCall struct {
	procedure int32
	args      []byte
}

func (r rawCall) EncodeXDR(e *rpc.Encoder) { e.Opaque(r.args) }

// rawResult keeps all that was answered.
type rawResult []byte

func (r *rawResult) DecodeXDR(d *rpc.Decoder) { *r = append(rawResult{}, d.Opaque(d.Remaining())...) }

// words makes arguments of numbers and texts.
func words(list ...any) []byte {
	e := rpc.NewEncoder(nil)
	for _, a := range list {
		switch a := a.(type) {
		case int:
			e.Uint32(uint32(a))
		case string:
			e.String(a)
		}
	}
	return e.Bytes()
}

// bases are calls that change nothing, also not if one of their words becomes another.
var bases = []rawCall{
	{ap.ProcConnectOpen, words(0)},
	{ap.ProcGetLibVersion, nil},
	{ap.ProcListServers, words(0, 0)},
	{ap.ProcLookupServer, words("virtlockd", 0)},
	{ap.ProcGetThreadpool, words("virtlockd", 0)},
	{ap.ProcSetThreadpool, words("virtlockd", 2, "minWorkers", 2, 0, "maxWorkers", 2, 0, 0)},
	{ap.ProcSetThreadpool, words("nosuch", 1, "minWorkers", 2, 0, 0)},
	{ap.ProcSetThreadpool, words("virtlockd", 2, "foo", 4, 0, 0, "bar", 7, "text", 0)},
	{ap.ProcListClients, words("virtlockd", 0, 0)},
	{ap.ProcLookupClient, words("admin", 5, 6, 0)},
	{ap.ProcClientInfo, words("admin", 5, 6, 0, 0, 0, 0)},
	{ap.ProcClientClose, words("admin", 5, 6, 0, 0, 0, 0)},
	{ap.ProcGetClientLimits, words("virtlockd", 0)},
	{ap.ProcSetClientLimits, words("virtlockd", 1, "nclients_unauth_max", 2, 200, 0)},
	{ap.ProcSetClientLimits, words("virtlockd", 2, "nclients_max", 2, 100, "nclients_unauth_max", 2, 101, 0)},
	{ap.ProcSetClientLimits, words("nosuch", 0, 0)},
	{ap.ProcGetLoggingOutputs, words(0)},
	{ap.ProcGetLoggingFilters, words(0)},
	{ap.ProcSetLoggingOutputs, words(1, "9:stderr", 0)},
	{ap.ProcSetLoggingFilters, words(1, "9:x", 0)},
	{ap.ProcUpdateTLSFiles, words("admin", 0)},
	{ap.ProcSetDaemonTimeout, words(0, 0)},
	{0, nil}, {20, words(0)}, {-1, words(1)},
}

// odd are words that others become.
var odd = []uint32{0, 1, 2, 7, 8, 33, 1 << 16, 1<<22 + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1}

// mutations are a call, cut short at every word, and with each word made odd, but for
// what differs by intention.
func mutations(b rawCall) (list []rawCall) {
	list = append(list, b)
	for n := 0; n < len(b.args); n += 4 {
		list = append(list, rawCall{b.procedure, b.args[:n]})
		for _, v := range odd {
			args := append([]byte{}, b.args...)
			binary.BigEndian.PutUint32(args[n:], v)
			if !differs(b.procedure, args) {
				list = append(list, rawCall{b.procedure, args})
			}
		}
	}
	return list
}

// differs says that a call does something in virtlockd that it does not here: more
// clients than there can be here, or none, or a time after which the daemon would end.
func differs(procedure int32, args []byte) bool {
	switch procedure {
	case ap.ProcSetDaemonTimeout:
		return binary.BigEndian.Uint32(args) != 0
	case ap.ProcSetClientLimits:
		const at = 4 + 12 + 4 + 4 + 12 + 4 // of the first limit, where it is that of clients
		if len(args) < at+4 || string(args[24:36]) != "nclients_max" {
			return false
		}
		most := binary.BigEndian.Uint32(args[at:])
		return most < 1 || most > ap.MaxMaxClients
	}
	return false
}

// answer is what a daemon makes of a call: the error, or the result where it does not
// have numbers of its own.
func answer(t *testing.T, c *rpc.Client, r rawCall) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var result rawResult
	err := c.Call(ctx, ap.ProgramNumber, ap.Version, r.procedure, r, &result)
	var e *rpc.Error
	switch {
	case errors.As(err, &e):
		return fmt.Sprintf("%d/%d/%d %q %q %q %q %d %d", e.Code, e.Domain, e.Level, e.Message, e.Str1, e.Str2, e.Str3, e.Int1, e.Int2)
	case err != nil:
		t.Fatalf("procedure %d, %x: %v", r.procedure, r.args, err)
	}
	switch r.procedure {
	case ap.ProcListServers, ap.ProcListClients:
		return fmt.Sprintf("%d bytes", len(result)) // virtlockd's order is any, and times differ
	}
	return fmt.Sprintf("%x", []byte(result))
}

// TestWire: bytes that are no call get the same answers from both daemons, and neither
// ends.
func TestWire(t *testing.T) {
	ours, theirs := startVmlockd(t), startVirtlockd(t)
	dial := func(d *daemon) *rpc.Client {
		c, err := rpc.Dial(t.Context(), d.adminSocket())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	us, them := dial(ours), dial(theirs)
	calls := 0
	compare := func(r rawCall) {
		calls++
		if d := cmp.Diff(answer(t, them, r), answer(t, us, r)); d != "" {
			t.Errorf("procedure %d, %x: virtlockd and vmlockd:\n%s", r.procedure, r.args, d)
		}
	}
	for _, b := range bases {
		for _, m := range mutations(b) {
			compare(m)
		}
	}
	// And more than one word at a time.
	rnd := rand.New(rand.NewPCG(1, 2))
	for range testenv.Rounds(t, "VMLOCKD_ADMIN_ROUNDS", 3000) {
		m := mutations(bases[rnd.IntN(len(bases))])
		r := m[rnd.IntN(len(m))]
		again := mutations(r)
		compare(again[rnd.IntN(len(again))])
	}
	t.Logf("%d calls", calls)
}
