package corosync

// System is where corosync is reached: Host is the real one, package corosynctest has a simulated one. A program only
// passes it on. Its methods, and those of what they return, may block for as long as corosync does not answer.
type System interface {
	// OpenCPG connects to the group service and joins the group. From Dispatch, and before it returns, deliver gets a
	// Message or a Membership at a time; it does not block. Nothing is delivered after Dispatch has returned.
	OpenCPG(group string, deliver func(Event)) (CPG, error)
	// OpenQuorum connects to the quorum service; deliver gets Rings from Dispatch, the present one first.
	OpenQuorum(deliver func(Event)) (Conn, error)
	// OpenCmap connects to the configuration map.
	OpenCmap() (Map, error)
}

// Conn is a connection to a service of corosync. Its methods are called one at a time. Errors are sentinels of this
// package or a LibraryError; ErrTryAgain alone says that the connection is still good.
type Conn interface {
	// Ready has a value, or is closed, when Dispatch should be called: there are events, or the connection broke. There may
	// be none all the same.
	Ready() <-chan struct{}
	// Dispatch delivers some of the events that are there, and waits for none.
	Dispatch() error
	// Close leaves and disconnects.
	Close() error
	// Self is this node, and for a CPG this process.
	Self() Member
}

// CPG is a Conn that is a member of a group.
type CPG interface {
	Conn
	// Send gives a message to corosync, in agreed order. The data is not kept.
	Send(data []byte) error
	// MaxMessage is how many bytes corosync sends in one piece.
	MaxMessage() int
}

// Map is a connection to the configuration map. Its methods are called one at a time.
type Map interface {
	// Get returns a key's value, ErrNoKey if there is none.
	Get(key string) (Value, error)
	// Keys returns the keys that begin with prefix, in no order, at most limit of them.
	Keys(prefix string, limit int) ([]string, error)
	Close() error
}
