//go:build race

package history_test

func init() { withRace = true }
