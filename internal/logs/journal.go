package logs

import (
	"context"
	"log/slog"
	"maps"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

type sendFunc func(message string, priority journal.Priority, vars map[string]string) error

// fieldPrefix keeps our fields apart from those of others in one journal.
const fieldPrefix = "VMLOCKD_"

// journalHandler sends each record to journald with its attributes as fields:
// lockspace becomes VMLOCKD_LOCKSPACE. The message carries them as well, since
// that is all that journalctl shows by default. A record of one of Events has its
// MESSAGE_ID.
type journalHandler struct {
	level    slog.Level
	send     sendFunc
	fallback slog.Handler // for when journald does not take a record
	prefix   string       // of groups, as in "GROUP_"
	fields   map[string]string
	text     string // " key=value" of fields, in order
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
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
	if err := h.send(text.String(), priority(r.Level), fields); err != nil {
		return h.fallback.Handle(ctx, r)
	}
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
	c.fallback = h.fallback.WithAttrs(attrs)
	return &c
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "_"
	c.fallback = h.fallback.WithGroup(name)
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
