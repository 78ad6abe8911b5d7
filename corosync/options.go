package corosync

import "time"

// Options are the bounds of a Group or a Quorum. The zero value is good.
type Options struct {
	// Background: Join and Track return at once and connect by themselves; the first event is Up or Down. Without it
	// they return when there is a connection, or the first attempt has failed.
	Background bool
	// Patience is how long one call of the library may take before the connection is given up. 0 is 5 s.
	Patience time.Duration
	// MinRetry and MaxRetry are the first and the longest pause between attempts to connect. 0 is 100 ms and 5 s.
	MinRetry, MaxRetry time.Duration
	// Queue is how many bytes of events may wait to be taken, 64 per event included. 0 is 4 MiB; it is at least two
	// messages of MaxMessage.
	Queue int
	// MaxMessage is the length of the longest message, in bytes. 0 is 64 KiB. Corosync may allow less (it is about 1 MiB).
	MaxMessage int
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	set(&o.Patience, 5*time.Second)
	set(&o.MinRetry, 100*time.Millisecond)
	set(&o.MaxRetry, max(5*time.Second, o.MinRetry))
	if o.MaxMessage <= 0 {
		o.MaxMessage = 64 << 10
	}
	if o.Queue <= 0 {
		o.Queue = 4 << 20
	}
	o.Queue = max(o.Queue, 2*o.MaxMessage+1024)
	return o
}
