package logs

import (
	"log/syslog"

	"github.com/coreos/go-systemd/v22/journal"
)

// syslogAt is where syslog listens: "" for its usual places. A variable for tests.
var syslogAt = ""

// syslogOut is one program's name in syslog. It connects when there is something to
// say, so it does not matter which of the two starts first. Only the queue's goroutine
// uses it.
type syslogOut struct {
	tag string
	w   *syslog.Writer
}

func (s *syslogOut) send(text string, p journal.Priority, _ map[string]string) (err error) {
	if s.w == nil {
		network := ""
		if syslogAt != "" {
			network = "unixgram"
		}
		if s.w, err = syslog.Dial(network, syslogAt, syslog.LOG_DAEMON|syslog.LOG_INFO, s.tag); err != nil {
			s.w = nil
			return err
		}
	}
	switch p {
	case journal.PriErr:
		return s.w.Err(text)
	case journal.PriWarning:
		return s.w.Warning(text)
	case journal.PriDebug:
		return s.w.Debug(text)
	}
	return s.w.Info(text)
}

func (s *syslogOut) close() {
	if s.w != nil {
		s.w.Close()
		s.w = nil
	}
}

// toSyslogs gives messages to the syslog outputs that the rules name when a record is
// logged, or to fallback if one does not take it.
func (s *shared) toSyslogs(fallback func(sendFunc) func(message)) func(message) {
	return func(m message) {
		for _, o := range s.rules.Load().outputs {
			if o.kind == toSyslog && m.level >= o.level {
				s.queue.put(m.bytes(), func() { fallback(o.syslog.send)(m) })
			}
		}
	}
}
