package peers

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// The header is the same for ever.
func TestHeaderBytes(t *testing.T) {
	b, err := encode(header{
		kind: kindAnswer, flags: flagLast, query: 0x0102030405060708, asker: corosync.Member{Node: 0x11121314, PID: 0x21222324}, page: 0x31323334,
	}, queryBody{Resource: []byte("r")})
	if err != nil {
		t.Fatal(err)
	}
	const want = "564d4c50" + "01" + "03" + "0001" + "0102030405060708" + "11121314" + "21222324" + "31323334" + "00000000"
	if got := hex.EncodeToString(b[:headerSize]); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := string(b[headerSize:]); got != `{"resource":"cg=="}` {
		t.Errorf("body %s", got)
	}
}

func TestDecodeHeader(t *testing.T) {
	good, err := encode(header{kind: kindGoodbye}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		b    []byte
		want error
	}{
		{"nothing", nil, errNotOurs}, {"half a header", good[:headerSize-1], errNotOurs}, {"another magic", append([]byte("VMLQ"), good[4:]...), errNotOurs},
		{"too long", append(good, make([]byte, MaxMessage)...), errTooLong}, {"good", good, nil},
	} {
		if _, _, err := decodeHeader(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
}

// What a later version adds is ignored; what is missing is zero.
func TestOtherVersions(t *testing.T) {
	info, err := decodeHello([]byte(`{"name":"n","colour":{"deep":[1,2,{"er":null}]},"version":"99.1"}`))
	if err != nil || info != (Info{Name: "n", Version: "99.1"}) {
		t.Errorf("hello: %+v, %v", info, err)
	}
	resource, err := decodeQuery([]byte(`{"resource":"cg==","limit":5}`))
	if err != nil || resource != "r" {
		t.Errorf("query: %q, %v", resource, err)
	}
	list, err := decodeAnswer(7, entry(field(tagResource, "r"), field(99, "what"), field(tagMode, "new mode"), field(255, "")))
	if err != nil || len(list) != 1 || list[0] != (Holding{Node: 7, Resource: "r", Mode: "new mode"}) {
		t.Errorf("answer: %+v, %v", list, err)
	}
}

func TestBounds(t *testing.T) {
	long := strings.Repeat("x", 20000)
	hello, err := json.Marshal(helloBody{Name: strings.Repeat("ä\x1b", 1000)})
	if err != nil {
		t.Fatal(err)
	}
	info, err := decodeHello(hello)
	if err != nil || len(info.Name) != maxName || strings.ContainsAny(info.Name, "\x1b\ufffd") {
		t.Errorf("a long name: %q, %v", info.Name, err)
	}
	if _, err := decodeHello([]byte(`{"name":"` + long + `"}`)); !errors.Is(err, errBody) {
		t.Errorf("a long hello: %v", err)
	}
	if _, err := decodeQuery([]byte(`{"resource":"` + strings.Repeat("QUFB", 22) + `"}`)); err == nil {
		t.Error("a resource's name of 66 bytes is taken")
	}
	if list, err := decodeAnswer(1, make([]byte, 2*maxPerPage+2)); !errors.Is(err, errTooMany) || len(list) != maxPerPage {
		t.Errorf("too many entries: %d, %v", len(list), err)
	}
	one := entry(field(tagPID, "\x00\x00\x00\x00\x00\x00\x00\x01"))
	for _, bad := range []string{"\x00", "\x00\x01", "\xff\xff\x01\x00\x00"} { // ends in the middle
		if list, err := decodeAnswer(1, append(bytes.Clone(one), bad...)); !errors.Is(err, errNotValid) || len(list) != 1 || list[0].OwnerPID != 1 {
			t.Errorf("%q: %+v, %v", bad, list, err)
		}
	}
	for _, bad := range [][]byte{field(tagPID, "1"), {tagName, 0, 5, 'x'}, {tagName, 0}, {tagName}} { // the next one can be read
		if list, err := decodeAnswer(1, append(entry(bad), one...)); !errors.Is(err, errNotValid) || len(list) != 1 || list[0].OwnerPID != 1 {
			t.Errorf("%q: %+v, %v", bad, list, err)
		}
	}
	list, err := decodeAnswer(1, entry(field(tagPID, "\xff\xff\xff\xff\xff\xff\xff\xff"), field(tagSince, "\x7f\xff\xff\xff\xff\xff\xff\xff"),
		field(tagName, long), field(tagMode, "\x1b[1m"+long), field(tagResource, long)))
	if err != nil || len(list) != 1 || list[0].OwnerPID != 0 || !list[0].Since.IsZero() || len(list[0].Name) != maxPath ||
		len(list[0].Mode) != maxShort || list[0].Mode[0] != '?' || len(list[0].Resource) != maxResource {
		t.Errorf("values out of bounds: %+v, %v", list, err)
	}
	if b := appendHolding(nil, Holding{Resource: long, Lockspace: long, Name: long, Mode: long, OwnerName: long, OwnerUUID: long, OwnerPID: 1, Since: time.Now()}); len(b) != maxEntry {
		t.Errorf("the longest entry has %d bytes", len(b))
	}
}

// field and entry make what appendHolding would not.
func field(tag byte, value string) []byte {
	return append([]byte{tag, byte(len(value) >> 8), byte(len(value))}, value...)
}

func entry(fields ...[]byte) []byte {
	all := bytes.Join(fields, nil)
	return append([]byte{byte(len(all) >> 8), byte(len(all))}, all...)
}

func genHolding() *rapid.Generator[Holding] {
	bytesOf := func(max int) *rapid.Generator[string] {
		return rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, max), func(b []byte) string { return string(b) })
	}
	return rapid.Custom(func(t *rapid.T) Holding {
		return Holding{
			Resource: bytesOf(maxResource).Draw(t, "resource"), Lockspace: bytesOf(300).Draw(t, "lockspace"), Name: bytesOf(300).Draw(t, "name"),
			Mode: rapid.SampledFrom([]string{"exclusive", "shared"}).Draw(t, "mode"), OwnerName: bytesOf(maxName).Draw(t, "owner"),
			OwnerUUID: rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{4}`).Draw(t, "uuid"), OwnerPID: rapid.IntRange(0, 1<<31-1).Draw(t, "pid"),
			Since: fromMillis(rapid.Int64Range(0, 4e12).Draw(t, "since")),
		}
	})
}

// A list comes out of its pages as it went in, whatever bytes its names have, and no page is too long.
func TestPagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(genHolding(), 0, 400).Draw(t, "list")
		for i := range list {
			list[i].Node = 3
		}
		var got []Holding
		lasts, n := 0, 0
		err := pages(list, func(body []byte, flags uint16) error {
			b := append(appendHeader(nil, header{kind: kindAnswer, page: uint32(n)}), body...)
			n++
			_, rest, err := decodeHeader(b)
			if err != nil {
				return err
			}
			page, err := decodeAnswer(3, rest)
			if flags&flagCut != 0 || lasts > 0 || len(b) > MaxMessage {
				t.Fatalf("flags %x, after the last %v, %d bytes", flags, lasts > 0, len(b))
			}
			if flags&flagLast != 0 {
				lasts++
			}
			got = append(got, page...)
			return err
		})
		if err != nil || lasts != 1 {
			t.Fatalf("%v; %d last pages", err, lasts)
		}
		if diff := cmp.Diff(append([]Holding{}, list...), append([]Holding{}, got...)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// More than an asker takes is cut, with a word about it.
func TestPagesCut(t *testing.T) {
	list := make([]Holding, 5000)
	for i := range list {
		list[i] = Holding{Resource: fmt.Sprint(i), Name: strings.Repeat("n", maxPath)}
	}
	total, cut, n := 0, false, 0
	err := pages(list, func(body []byte, flags uint16) error {
		page, err := decodeAnswer(1, body)
		total += headerSize + len(body)
		n += len(page)
		cut = flags&flagCut != 0
		if cut != (flags&flagLast != 0) {
			t.Errorf("flags %x", flags)
		}
		return err
	})
	if err != nil || !cut || total > maxAnswer || n < 2000 {
		t.Errorf("%d bytes with %d entries, cut %v, %v", total, n, cut, err)
	}
}

// FuzzDecode gives any bytes to the decoder: it takes memory in proportion to what came, and what it returns is bounded.
func FuzzDecode(f *testing.F) {
	add := func(h header, body any) {
		b, err := encode(h, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	hello, err := encodeHello(Info{Name: "node1", Version: "1", Digest: "d", Guard: "off", Draining: true, Started: time.Unix(1e9, 0)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	add(header{kind: kindQuery, query: 1}, queryBody{})
	add(header{kind: kindQuery, query: 1}, queryBody{Resource: []byte("r")})
	answer := appendHeader(nil, header{kind: kindAnswer, query: 1, flags: flagLast})
	answer = appendHolding(answer, Holding{Resource: "r", Name: "/a", Mode: "exclusive", OwnerPID: 5, Since: time.Unix(1e9, 0)})
	f.Add(appendHolding(answer, Holding{}))
	add(header{kind: kindGoodbye}, nil)
	f.Add(append(bytes.Clone(hello[:headerSize]), bytes.Repeat([]byte("["), 1000)...))
	f.Add(append(bytes.Clone(answer[:headerSize]), make([]byte, 60000)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := testenv.Allocated()
		h, body, err := decodeHeader(b)
		if err != nil {
			return
		}
		switch h.kind {
		case kindHello:
			info, err := decodeHello(body)
			if err == nil && len(info.Name)+len(info.Version)+len(info.Digest)+len(info.Guard) > maxName+4*maxShort {
				t.Errorf("hello is too long: %+v", info)
			}
			if err == nil {
				if again, err := encodeHello(info); err != nil {
					t.Errorf("what was read cannot be said: %v", err)
				} else if twice, err := decodeHello(again[headerSize:]); err != nil || twice != info {
					t.Errorf("said again it is %+v, was %+v, %v", twice, info, err)
				}
			}
		case kindQuery:
			if r, err := decodeQuery(body); err == nil && len(r) > maxResource {
				t.Errorf("a resource of %d bytes", len(r))
			}
		case kindAnswer:
			list, _ := decodeAnswer(1, body)
			if len(list) > maxPerPage {
				t.Errorf("%d entries", len(list))
			}
			for _, h := range list {
				if h.Node != 1 || len(h.Resource) > maxResource || len(h.Name) > maxPath || len(h.OwnerName) > maxName || h.OwnerPID < 0 {
					t.Errorf("an entry is out of bounds: %+v", h)
				}
			}
		}
		// The runtime counts in steps, and other goroutines allocate too: so the bound has a constant part.
		if took := testenv.Allocated() - before; took > 40*uint64(len(b))+2<<20 {
			t.Errorf("%d bytes were allocated for a message of %d", took, len(b))
		}
	})
}
