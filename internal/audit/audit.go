// Package audit keeps the audit log: an append-only file with a line of JSON
// for each step of what operators force.
//
// What it promises:
//
//   - When Record returns nil the record is on the disk.
//   - An action is to be recorded before it is done, and must not be done if that
//     fails, for whatever reason, a full disk too: there is no way around it. The
//     log may be moved to another file system at any time by its configuration.
//   - Records are never changed or removed here, not even one of which a crash
//     or a full disk has left a part; the next begins on a line of its own.
//   - A record takes one line of at most MaxRecord bytes.
//
// The file is opened anew for each record, so it may be renamed or removed at
// any time. A Log may be used from many goroutines, and several processes may
// write one file.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxRecord bounds a record, in bytes with its line feed.
const MaxRecord = 64 << 10

// The bounds of the texts of an Action, in bytes; what is longer is cut. A
// byte takes six at most in JSON, so that all together stay below MaxRecord.
const (
	maxWord   = 64   // Action
	maxLogin  = 256  // Login
	maxTarget = 4096 // Target: a path
	maxText   = 2048 // Reason and Result
)

var (
	// ErrPlace is wrapped when what is at the path cannot be an audit log.
	ErrPlace = errors.New("it is no regular file")
	// ErrIncomplete is wrapped when an Action lacks what it must have.
	ErrIncomplete = errors.New("the record of an action must say what was done to what, why, and with what result")
)

// Action is one step of something that an operator forces.
type Action struct {
	Time   time.Time // when; the zero time is now
	Action string    // a word: "release", ...
	UID    uint32    // whose process asked, as the kernel says (SO_PEERCRED)
	Login  string    // who had logged in; may be empty
	PID    int32     // of the process that asked
	Reason string    // what the operator gave as the reason
	Target string    // on what
	Result string    // Asked before it is done, and then what came of it
}

// Asked is the Result of an action that is about to be done.
const Asked = "asked"

// record is an Action as a line. Its names and their meaning do not change.
type record struct {
	Time   time.Time `json:"time"`
	Action string    `json:"action"`
	Who    who       `json:"who"`
	Reason string    `json:"reason"`
	Target string    `json:"target"`
	Result string    `json:"result"`
}

type who struct {
	UID   uint32 `json:"uid"`
	Login string `json:"login"`
	PID   int32  `json:"pid"`
}

// line makes a record of at most MaxRecord bytes, with its line feed.
func line(a Action) ([]byte, error) {
	if a.Action == "" || a.Target == "" || a.Reason == "" || a.Result == "" {
		return nil, ErrIncomplete
	}
	r := record{
		Time:   a.Time.UTC(),
		Action: cut(a.Action, maxWord),
		Who:    who{a.UID, cut(a.Login, maxLogin), a.PID},
		Reason: cut(a.Reason, maxText),
		Target: cut(a.Target, maxTarget),
		Result: cut(a.Result, maxText),
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, err // a year of more than four digits
	}
	return b.Bytes(), nil
}

// cut makes text valid UTF-8 of at most limit bytes and a note of how many are
// missing.
func cut(text string, limit int) string {
	missing := 0
	if len(text) > limit {
		end := limit
		for end > limit-utf8.UTFMax && !utf8.RuneStart(text[end]) {
			end--
		}
		text, missing = text[:end], len(text)-end
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	if missing > 0 {
		text += fmt.Sprintf(" [+%d bytes]", missing)
	}
	return text
}

// Log is an audit log at a path.
type Log struct {
	path string
	turn chan struct{} // full while a record is being written
	fs   files
}

// New makes a Log of the file at an absolute path, which need not exist. It
// touches nothing.
func New(path string) *Log {
	return &Log{path: path, turn: make(chan struct{}, 1), fs: system{}}
}

// Path is the file.
func (l *Log) Path() string { return l.path }

// Record adds a record and returns nil when it is on the disk. The error says
// what to do. When ctx ends first, as it may with a disk that hangs, the record
// may still be written.
func (l *Log) Record(ctx context.Context, a Action) error {
	if a.Time.IsZero() {
		a.Time = time.Now()
	}
	text, err := line(a)
	if err == nil {
		err = l.do(ctx, func() error { return l.write(text) })
	}
	return l.explained(err)
}

// Check says why a record could not be written now, as far as that can be known
// without writing one, or nil. It makes and changes nothing.
func (l *Log) Check(ctx context.Context) error {
	return l.explained(l.do(ctx, l.check))
}

func (l *Log) explained(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrIncomplete):
		return err
	case full(err):
		return fmt.Errorf("the audit log %s cannot be written: %w: make room, or set audit_log to another file system and reload vmlockd", l.path, err)
	}
	return fmt.Errorf("the audit log %s cannot be written: %w", l.path, err)
}

// do runs f alone, on a goroutine of its own, of which there is one at most: a
// disk may hang for as long as it likes.
func (l *Log) do(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("an earlier record is still being written, does the disk hang? (%w)", ctx.Err())
	}
	done := make(chan error, 1)
	go func() {
		err := f()
		<-l.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer from the disk: %w", ctx.Err())
	}
}
