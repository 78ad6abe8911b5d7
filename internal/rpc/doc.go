// Package rpc speaks libvirt's RPC over unix sockets: framing, a bounded XDR
// codec, libvirt's error structure, keepalive and peer credentials, as a server
// and as a client. Which procedures there are, and what they do, is a Program's
// business.
//
// The wire format is that of src/rpc/virnetprotocol.x and
// src/rpc/virkeepaliveprotocol.x in libvirt; what a server does with input that
// is not well-formed follows libvirt 9.0's virtlockd, whose behaviour was
// observed on the wire.
//
// What the server promises:
//
//   - Calls of one connection are carried out one after the other, in order, and
//     answered in order. Connections never wait for each other.
//   - A length is checked before memory is taken, memory grows only as bytes
//     arrive, and never beyond what the program can look at (Program.MaxArgs).
//   - No input ends the server, and neither does a panic in a handler: it ends
//     that connection.
//   - A client that never reads its replies is cut off after WriteTimeout.
//   - Descriptors that a client passes along are never received: the kernel
//     drops them.
//
// A Server may be used from many goroutines. A Session is used by one goroutine
// at a time. A Client may be used from many goroutines, which then take turns.
package rpc
