// Package logstest is a journald for tests: a socket that reads the bytes of its
// native protocol.
package logstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// Patience is how long a record may take to arrive.
const Patience = time.Minute

// maxRecord is how large a record may be here.
const maxRecord = 1 << 16

// Journald receives records.
type Journald struct {
	// Path is the socket.
	Path string
	conn *net.UnixConn
}

// New makes one that ends with the test.
func New(t testing.TB) *Journald {
	t.Helper()
	j := &Journald{Path: filepath.Join(t.TempDir(), "journal")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.Path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	j.conn = conn
	t.Cleanup(func() { conn.Close() })
	return j
}

// Next returns the fields of the next record.
func (j *Journald) Next(t testing.TB) map[string]string {
	t.Helper()
	if err := j.conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxRecord)
	n, err := j.conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := Parse(buf[:n])
	if err != nil {
		t.Fatalf("%v in %q", err, buf[:n])
	}
	return fields
}

// Parse reads a record as systemd.io/JOURNAL_NATIVE_PROTOCOL describes it.
func Parse(b []byte) (map[string]string, error) {
	fields := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, errors.New("the last line has no end")
		}
		name, value, short := bytes.Cut(line, []byte("="))
		if !short {
			if len(rest) < 8 {
				return nil, errors.New("no length")
			}
			size := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; uint64(len(rest)) <= size || rest[size] != '\n' {
				return nil, errors.New("a wrong length")
			}
			value, rest = rest[:size], rest[size+1:]
		}
		if _, twice := fields[string(name)]; twice {
			return nil, fmt.Errorf("%s twice", name)
		}
		fields[string(name)], b = string(value), rest
	}
	return fields, nil
}
