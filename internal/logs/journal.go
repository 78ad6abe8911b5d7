package logs

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

type sendFunc func(message string, priority journal.Priority, vars map[string]string) error

// fieldPrefix keeps our fields apart from those of others in one journal.
const fieldPrefix = "VMLOCKD_"

// message is a record as journald gets it.
type message struct {
	at     time.Time
	level  slog.Level
	text   string
	fields map[string]string
}

// bytes is what it keeps of memory.
func (m message) bytes() int {
	n := len(m.text)
	for name, value := range m.fields {
		n += len(name) + len(value) + fieldOverhead
	}
	return n
}

// sendOr gives messages to journald, or to fallback if that does not take one.
func sendOr(send sendFunc, fallback slog.Handler) func(message) {
	return func(m message) {
		if send(m.text, priority(m.level), m.fields) == nil {
			return
		}
		r := slog.NewRecord(m.at, m.level, m.text, 0)
		if event, ok := m.fields[fieldName(EventKey)]; ok { // the text has all else
			r.AddAttrs(slog.String(EventKey, event))
		}
		_ = fallback.Handle(context.Background(), r)
	}
}

// journalHandler makes of each record a message with its attributes as fields:
// lockspace becomes VMLOCKD_LOCKSPACE. The text carries them as well, since
// that is all that journalctl shows by default. A record of one of Events has its
// MESSAGE_ID.
type journalHandler struct {
	level  slog.Level
	send   func(message)
	prefix string // of groups, as in "GROUP_"
	fields map[string]string
	text   string // " key=value" of fields, in order
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	fields := maps.Clone(h.fields)
	if fields == nil {
		fields = map[string]string{}
	}
	text := strings.Builder{}
	text.WriteString(r.Message)
	text.WriteString(h.text)
	r.Attrs(func(a slog.Attr) bool {
		add(fields, &text, h.prefix, a)
		return true
	})
	h.send(message{r.Time, r.Level, text.String(), fields})
	return nil
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.fields = maps.Clone(h.fields)
	if c.fields == nil {
		c.fields = map[string]string{}
	}
	text := strings.Builder{}
	text.WriteString(h.text)
	for _, a := range attrs {
		add(c.fields, &text, h.prefix, a)
	}
	c.text = text.String()
	return &c
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "_"
	return &c
}

func add(fields map[string]string, text *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "_"
		}
		for _, sub := range v.Group() {
			add(fields, text, prefix, sub)
		}
		return
	}
	if a.Key == "" {
		return
	}
	value := v.String()
	fields[fieldName(prefix+a.Key)] = value
	if prefix+a.Key == EventKey {
		if id, ok := idOf[value]; ok {
			fields["MESSAGE_ID"] = id
		}
		return // the message says it in words
	}
	text.WriteString(" " + prefix + a.Key + "=")
	if strings.ContainsAny(value, " \"=\n") || value == "" {
		text.WriteString(`"` + strings.ReplaceAll(value, `"`, `\"`) + `"`)
	} else {
		text.WriteString(value)
	}
}

// fieldName makes a journal field's name, for which only upper case letters,
// digits and underscores are allowed (systemd.journal-fields(7)).
func fieldName(key string) string {
	return fieldPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
