//go:build race

package identity

func init() { withRace = true }
