package rpc

import "sync/atomic"

// Stats are figures of a Server.
type Stats struct {
	Clients    int    // connections
	MaxClients int    // how many of them may have sessions without limits
	Accepted   uint64 // connections that were accepted and served, since the start
	Refused    uint64 // connections of others than Options.Allow allows, since the start
	Failures   uint64 // connections that could not be accepted, since the start
}

// Stats returns the figures of this moment.
func (s *Server) Stats() Stats {
	return Stats{Clients: s.Clients(), MaxClients: s.places.max(), Accepted: s.counts.accepted.Load(), Refused: s.counts.refused.Load(), Failures: s.counts.failures.Load()}
}

type counts struct{ accepted, refused, failures atomic.Uint64 }
