//go:build race

package rpc

func init() { withRace = true }
