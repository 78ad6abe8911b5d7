//go:build race

package guard

func init() { withRace = true }
