package peers

import "time"

// bucket limits a rate: it fills with rate a second up to burst, and what is taken must be in it.
type bucket struct {
	rate, burst float64
	level       float64
	at          time.Time
}

func newBucket(rate, burst float64, now time.Time) bucket {
	return bucket{rate: rate, burst: burst, level: burst, at: now}
}

// take takes n, or nothing if there is less.
func (b *bucket) take(n float64, now time.Time) bool {
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.level = min(b.burst, b.level+d*b.rate)
	}
	b.at = now
	if b.level < n {
		return false
	}
	b.level -= n
	return true
}
