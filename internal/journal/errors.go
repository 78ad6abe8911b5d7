package journal

import "errors"

// What Open returns.
var (
	// ErrInUse: another process has this journal open. The text says which.
	ErrInUse = errors.New("another daemon uses the journal")
)

// What the methods of a Journal return. Anything else is what the system said
// of a write, for example ENOSPC; nothing was recorded then, and later calls may
// succeed.
var (
	// ErrTooLong: a name exceeds MaxName or MaxID. Nothing was recorded.
	ErrTooLong = errors.New("a name is too long for the journal")
	// ErrNoEntry: no entry has this seq. Nothing was recorded.
	ErrNoEntry = errors.New("the journal has no such entry")
	// ErrDistrusted: what was written before cannot be read back. No call
	// succeeds any more. The text says what was found.
	ErrDistrusted = errors.New("the journal cannot be trusted any more")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the journal is closed")
)

var (
	errBody   = errors.New("a record of a known kind has impossible content")
	errHeader = errors.New("its header is damaged")
)
