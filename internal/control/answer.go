package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// The codes of errors.
const (
	CodeBadRequest  = "bad_request" // the request makes no sense; the message says what is wrong
	CodeNotFound    = "not_found"   // there is no such path
	CodeTooMany     = "too_many"    // more streams of events than are served
	CodeNotHeld     = "not_held"    // nobody holds what is to be released
	CodeOwnerLives  = "owner_lives" // an owner may be alive, and force was not used
	CodeNodeMember  = "node_member" // the node is a member of the cluster
	CodeNoNode      = "no_node"     // there is no such node
	CodeNoCluster   = "no_cluster"  // the backend is not "cluster"
	CodeNotNow      = "not_now"     // the backend cannot do it now; the message says what it waits for
	CodeFailed      = "failed"      // it was tried and went wrong
	CodeUnavailable = "unavailable" // the daemon did not answer; made by Client
	CodeForbidden   = "not_allowed" // the caller may not use the socket; made by Client
)

// Error is an error of the API.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Failure is the body of every answer that is an error.
type Failure struct {
	Error Error `json:"error"`
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that has left needs no answer
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(Failure{Error{Code: code, Message: message}})
}

// failLocking answers with an error of package locking.
func failLocking(w http.ResponseWriter, err error) {
	status, code := http.StatusInternalServerError, CodeFailed
	var e *locking.Error
	if errors.As(err, &e) {
		switch e.Kind {
		case locking.KindNotLocked, locking.KindNoLockspace:
			status, code = http.StatusNotFound, CodeNotHeld
		case locking.KindOwnerLives:
			status, code = http.StatusConflict, CodeOwnerLives
		case locking.KindUnavailable:
			status, code = http.StatusServiceUnavailable, CodeNotNow
		}
	}
	fail(w, status, code, err.Error())
}

// body reads a request's JSON, and answers if it cannot be used.
func body(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("there is something behind the JSON object")
		}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		fail(w, http.StatusRequestEntityTooLarge, CodeBadRequest, fmt.Sprintf("the body is longer than %d bytes", large.Limit))
	case err != nil:
		fail(w, http.StatusBadRequest, CodeBadRequest, "the body is not the JSON object that is wanted: "+err.Error())
	}
	return err == nil
}

// query reads a request's parameters, of which only some are known, and answers
// if it cannot be used.
func query(w http.ResponseWriter, r *http.Request, known ...string) (url.Values, bool) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		for key := range q {
			if !slices.Contains(known, key) {
				err = fmt.Errorf("parameter %q is not known: use %q", key, known)
			}
		}
	}
	if err != nil {
		fail(w, http.StatusBadRequest, CodeBadRequest, err.Error())
		return nil, false
	}
	return q, true
}

// flag reads a parameter that is true or false.
func flag(q url.Values, key string) (bool, error) {
	text := q.Get(key)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("parameter %q is %q: use true or false", key, text)
	}
	return v, nil
}
