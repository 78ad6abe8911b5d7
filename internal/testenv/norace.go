//go:build !race

package testenv

// WithRace says that the race detector is there, with which a search takes several
// times as long.
const WithRace = false
