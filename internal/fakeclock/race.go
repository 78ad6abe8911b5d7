//go:build race

package fakeclock

func init() { withRace = true }
