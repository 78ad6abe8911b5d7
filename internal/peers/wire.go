package peers

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/vmlockd/vmlockd/corosync"
)

// MaxMessage is the length of the longest message, in bytes. The group must carry at least that.
const MaxMessage = 64 << 10

// Protocol is the version of what this package speaks. It is told and never compared.
const Protocol = 1

// A message is a header of headerSize bytes and a body. All numbers are big endian. The header is the same in all versions:
//
//	0  magic "VMLP"
//	4  protocol of the sender
//	5  kind
//	6  flags
//	8  the question's number, in questions and answers
//	16 node id and 20 process id of who asked, in answers
//	24 number of the page, in answers, from 0 on
//	28 zero
//
// The body of a hello and of a question is a JSON object. That of an answer, of which there may be ten thousands, is a
// sequence of entries, each a length of 2 bytes and that many bytes of fields; a field is a tag of 1 byte, a length of
// 2 bytes, and a value. What has an unknown tag is skipped.
const (
	magic      = "VMLP"
	headerSize = 32
)

// Kinds of messages. Others are ignored.
const (
	kindHello   = 1 // helloBody, from everybody in regular intervals and when there is news
	kindQuery   = 2 // queryBody
	kindAnswer  = 3 // a page of entries
	kindGoodbye = 4 // nothing; the sender is about to leave
	// Daemons that do not know these two ignore them.
	kindWhich = 5 // whichBody: which disk is this path there?
	kindDisk  = 6 // diskBody, the answer, in one page
)

// Flags of answers.
const (
	flagLast = 1 // the last page
	flagCut  = 2 // there are more locks than are sent
	flagBusy = 4 // with flagCut: nothing is sent, because there were too many questions
)

// Tags of an entry's fields. Numbers have 8 bytes.
const (
	tagResource  = 1
	tagLockspace = 2
	tagName      = 3
	tagMode      = 4
	tagOwner     = 5
	tagUUID      = 6
	tagPID       = 7
	tagSince     = 8 // milliseconds since 1970 UTC
)

// Bounds of what is read. Longer texts are cut, more entries than that make a page unreadable.
const (
	maxResource = 64 // DLM_RESNAME_MAXLEN
	maxPath     = 4096
	maxName     = 255
	maxShort    = 64
	maxPerPage  = 2048
	maxHello    = 8 << 10 // of the body; so that a later version has room
	maxQuery    = 1 << 10
)

var (
	errNotOurs  = errors.New("not a message of vmlockd")
	errBody     = errors.New("its body is too long")
	errTooLong  = fmt.Errorf("longer than %d bytes", MaxMessage)
	errTooMany  = fmt.Errorf("more than %d entries in a page", maxPerPage)
	errNotValid = errors.New("unreadable entries")
)

// header is a message's header.
type header struct {
	protocol uint8
	kind     uint8
	flags    uint16
	query    uint64
	asker    corosync.Member
	page     uint32
}

// helloBody is what a daemon says about itself. Times are in milliseconds since 1970 UTC.
type helloBody struct {
	Name     string `json:"name,omitempty"`
	Version  string `json:"version,omitempty"`
	Digest   string `json:"digest,omitempty"`
	Rules    string `json:"rules,omitempty"`
	Guard    string `json:"guard,omitempty"`
	Draining bool   `json:"draining,omitempty"`
	Started  int64  `json:"started,omitempty"`
}

// queryBody asks for everything, or for what is held of one resource.
type queryBody struct {
	Resource []byte `json:"resource,omitempty"`
}

// encode makes a message. A body that is nil is left out.
func encode(h header, body any) ([]byte, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	if headerSize+len(b) > MaxMessage {
		return nil, errTooLong
	}
	return append(appendHeader(make([]byte, 0, headerSize+len(b)), h), b...), nil
}

func appendHeader(b []byte, h header) []byte {
	b = append(b, magic...)
	b = append(b, Protocol, h.kind)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint64(b, h.query)
	b = binary.BigEndian.AppendUint32(b, h.asker.Node)
	b = binary.BigEndian.AppendUint32(b, h.asker.PID)
	b = binary.BigEndian.AppendUint32(b, h.page)
	return binary.BigEndian.AppendUint32(b, 0)
}

// decodeHeader reads a message's header and returns what follows it.
func decodeHeader(b []byte) (h header, body []byte, err error) {
	switch {
	case len(b) > MaxMessage:
		return h, nil, errTooLong
	case len(b) < headerSize || string(b[:4]) != magic:
		return h, nil, errNotOurs
	}
	h = header{
		protocol: b[4], kind: b[5], flags: binary.BigEndian.Uint16(b[6:]), query: binary.BigEndian.Uint64(b[8:]),
		asker: corosync.Member{Node: binary.BigEndian.Uint32(b[16:]), PID: binary.BigEndian.Uint32(b[20:])},
		page:  binary.BigEndian.Uint32(b[24:]),
	}
	return h, b[headerSize:], nil
}

func decodeHello(body []byte) (Info, error) {
	if len(body) > maxHello {
		return Info{}, errBody
	}
	var h helloBody
	if err := json.Unmarshal(body, &h); err != nil {
		return Info{}, err
	}
	return Info{
		Name: clean(h.Name, maxName), Version: clean(h.Version, maxShort), Digest: clean(h.Digest, 2*maxShort), Rules: clean(h.Rules, 2*maxShort), Guard: clean(h.Guard, maxShort),
		Draining: h.Draining, Started: fromMillis(h.Started),
	}, nil
}

func encodeHello(i Info) ([]byte, error) {
	return encode(header{kind: kindHello}, helloBody{
		Name: clean(i.Name, maxName), Version: clean(i.Version, maxShort), Digest: clean(i.Digest, 2*maxShort), Rules: clean(i.Rules, 2*maxShort), Guard: clean(i.Guard, maxShort),
		Draining: i.Draining, Started: toMillis(i.Started),
	})
}

// decodeQuery returns the resource that is asked for, "" for all.
func decodeQuery(body []byte) (string, error) {
	if len(body) > maxQuery {
		return "", errBody
	}
	var q queryBody
	if err := json.Unmarshal(body, &q); err != nil {
		return "", err
	}
	if len(q.Resource) > maxResource {
		return "", fmt.Errorf("a resource's name of %d bytes", len(q.Resource))
	}
	return string(q.Resource), nil
}

// decodeAnswer reads a page of what a node holds. With an error comes what could be read.
func decodeAnswer(node uint32, body []byte) (list []Holding, err error) {
	for len(body) > 0 {
		if len(list) == maxPerPage {
			return list, errTooMany
		}
		entry, rest, ok := takeSized(body)
		if !ok {
			return list, errNotValid
		}
		body = rest
		h, ok := decodeHolding(entry)
		if !ok {
			err = errNotValid
			continue
		}
		h.Node = node
		list = append(list, h)
	}
	return list, err
}

func decodeHolding(entry []byte) (h Holding, ok bool) {
	for len(entry) > 0 {
		tag := entry[0]
		value, rest, ok := takeSized(entry[1:])
		if !ok {
			return h, false
		}
		entry = rest
		switch tag {
		case tagResource:
			h.Resource = cutTo(value, maxResource)
		case tagLockspace:
			h.Lockspace = cutTo(value, maxPath)
		case tagName:
			h.Name = cutTo(value, maxPath)
		case tagMode:
			h.Mode = clean(cutTo(value, maxShort), maxShort)
		case tagOwner:
			h.OwnerName = cutTo(value, maxName)
		case tagUUID:
			h.OwnerUUID = clean(cutTo(value, maxShort), maxShort)
		case tagPID, tagSince:
			if len(value) != 8 {
				return h, false
			}
			if n := int64(binary.BigEndian.Uint64(value)); tag == tagPID {
				h.OwnerPID = pid(n)
			} else {
				h.Since = fromMillis(n)
			}
		}
	}
	return h, true
}

// takeSized takes what stands behind a length of 2 bytes.
func takeSized(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b)-2 < n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// maxEntry is more than the length of the longest entry.
const maxEntry = maxResource + 2*maxPath + maxName + 2*maxShort + 2*8 + 8*3 + 2

// appendHolding adds an entry.
func appendHolding(b []byte, h Holding) []byte {
	start := len(b)
	b = append(b, 0, 0)
	text := func(tag byte, s string, longest int) {
		if s = s[:min(len(s), longest)]; s != "" {
			b = append(binary.BigEndian.AppendUint16(append(b, tag), uint16(len(s))), s...)
		}
	}
	number := func(tag byte, n int64) {
		if n > 0 {
			b = binary.BigEndian.AppendUint64(append(b, tag, 0, 8), uint64(n))
		}
	}
	text(tagResource, h.Resource, maxResource)
	text(tagLockspace, h.Lockspace, maxPath)
	text(tagName, h.Name, maxPath)
	text(tagMode, h.Mode, maxShort)
	text(tagOwner, h.OwnerName, maxName)
	text(tagUUID, h.OwnerUUID, maxShort)
	number(tagPID, int64(h.OwnerPID))
	number(tagSince, toMillis(h.Since))
	binary.BigEndian.PutUint16(b[start:], uint16(len(b)-start-2))
	return b
}

// clean makes a text fit to be shown: valid, printable, at most n bytes.
func clean(s string, n int) string {
	s = strings.ToValidUTF8(s[:min(len(s), n)], "?")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// pid is a process id, or 0.
func pid(n int64) int {
	if n < 0 || n > 1<<31-1 {
		return 0
	}
	return int(n)
}

func cutTo(b []byte, n int) string { return string(b[:min(len(b), n)]) }

// fromMillis reads a time; 0 is the zero time, and so is what no clock shows.
func fromMillis(ms int64) time.Time {
	const latest = 253402300799000 // the year 9999
	if ms <= 0 || ms > latest {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func toMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
