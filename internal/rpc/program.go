package rpc

import "context"

// Program is a set of procedures that a Server offers.
type Program interface {
	// ID is the number and the version that clients ask for.
	ID() (program, version uint32)
	// MaxArgs is how many bytes of arguments the program can look at. What a
	// client sends beyond that is dropped unseen.
	MaxArgs() int
	// NewSession is called when a client first calls the program.
	NewSession(Peer) Session
}

// Session is a program's side of one connection. Its methods are called one
// after the other, in one goroutine that nobody else waits for.
type Session interface {
	// Call carries out one call: it reads the arguments, which are valid until it
	// returns, and appends the result. An *Error is sent as it is, any other
	// error as an internal one. The context ends when the server can wait no
	// longer; that the client has gone does not end it, for libvirt's clients may
	// leave without waiting for the answer.
	Call(ctx context.Context, procedure int32, args *Decoder, result *Encoder) error
	// Ended is called once, after the last call, when the connection is closed.
	Ended(Cause)
}

// Limited is a Session that can do without taking more of anything. Where
// clients or descriptors have run out, a few more connections are served for
// those who want to give something back; sessions that are not Limited are not
// opened on them.
type Limited interface {
	Session
	// Limit is called before the first call, with the reason to give for refusing.
	Limit(why error)
}

// Finisher is a Session that can end its connection.
type Finisher interface {
	Session
	// Finished is asked after each call: if it is true the connection is closed as
	// soon as the answer is sent.
	Finished() bool
}

// Cause is why a connection has ended.
type Cause uint8

// The causes.
const (
	PeerClosed    Cause = iota // the client closed it, or its process ended
	ProtocolError              // the client sent what is no message, or not the whole of it in time
	PeerStuck                  // the client did not read its replies
	ServerStopped              // Shutdown, or the connection goes to another process
	Failed                     // a bug on our side
	Dismissed                  // Disconnect
)

func (c Cause) String() string {
	switch c {
	case PeerClosed:
		return "closed by the client"
	case ProtocolError:
		return "malformed message"
	case PeerStuck:
		return "the client does not read"
	case ServerStopped:
		return "the server stops"
	case Dismissed:
		return "disconnected by an operator"
	default:
		return "internal failure"
	}
}
