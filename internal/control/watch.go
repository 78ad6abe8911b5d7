package control

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// batch is how many events are written between two looks for newer ones.
const batch = 64

// The headers of the answer to /v1/events: since when events are counted, and after
// which of them it begins.
const (
	startedHeader = "Vmlockd-Started"
	sinceHeader   = "Vmlockd-Since"
)

func (s *Server) startedText() string { return s.started.UTC().Format(time.RFC3339Nano) }

// events writes events as lines of JSON, as they happen. A client that reads more
// slowly than events come is told how many it missed.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "since", "follow", "started")
	if !ok {
		return
	}
	since, follow := s.o.Events.Last(), true
	var err error
	if q.Has("follow") {
		follow, err = flag(q, "follow")
	}
	if err == nil && q.Has("since") {
		since, err = strconv.ParseUint(q.Get("since"), 10, 64)
	}
	if err == nil && q.Has("started") && q.Get("started") != s.startedText() {
		since = 0 // its numbers are those of an earlier daemon
	}
	if err != nil {
		fail(w, http.StatusBadRequest, CodeBadRequest, err.Error())
		return
	}
	select {
	case s.watchers <- struct{}{}:
		defer func() { <-s.watchers }()
	default:
		fail(w, http.StatusServiceUnavailable, CodeTooMany, "others watch already, as many as are served at once ("+strconv.Itoa(maxWatchers)+")")
		return
	}
	wake, done := s.o.Events.watch()
	defer done()
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // it has said all
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set(startedHeader, s.startedText())
	w.Header().Set(sinceHeader, strconv.FormatUint(since, 10))
	lines := json.NewEncoder(w)
	for {
		_ = rc.SetWriteDeadline(time.Now().Add(watchTimeout))
		list, missed := s.o.Events.After(since, batch)
		if missed > 0 {
			since += missed
			if lines.Encode(Line{Missed: missed}) != nil {
				return
			}
		}
		for i := range list {
			if lines.Encode(Line{Event: &list[i]}) != nil {
				return
			}
			since = list[i].Seq
		}
		if rc.Flush() != nil {
			return
		}
		if len(list) > 0 {
			continue
		}
		if !follow {
			return
		}
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		case <-s.ending:
			return
		}
	}
}
