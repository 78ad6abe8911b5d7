package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// RemoteError is an error that the other side reported.
type RemoteError struct {
	Message string
	Code    string
}

func (e *RemoteError) Error() string { return e.Message }

// Errorf makes an error that WriteError passes on with its code.
func Errorf(code, format string, args ...any) error {
	return &RemoteError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WriteJSON sends v as a success.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The peer may be gone; there is no one left to tell.
	_ = json.NewEncoder(w).Encode(v)
}

// WriteError sends err as a failure; a RemoteError keeps its code.
func WriteError(w http.ResponseWriter, err error) {
	status, body := http.StatusInternalServerError, Error{Message: err.Error()}
	if re, ok := errors.AsType[*RemoteError](err); ok {
		body.Code = re.Code
		switch re.Code {
		case CodeNotFound:
			status = http.StatusNotFound
		case CodeState, CodeNodeOff:
			status = http.StatusConflict
		default:
			status = http.StatusUnprocessableEntity
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Handle turns a function into a handler that answers with its result or its error.
func Handle(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			WriteError(w, err)
			return
		}
		if v == nil {
			v = struct{}{}
		}
		WriteJSON(w, v)
	}
}

// Call sends in (nil: no body) as JSON and decodes the answer into out (nil: ignored). Failures that
// the other side reported are *RemoteError.
func Call(ctx context.Context, c *http.Client, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := Do(ctx, c, method, url, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// Do sends a request and returns a successful response, whose body the caller closes.
func Do(ctx context.Context, c *http.Client, method, url string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		// The context's own error says more than the wrapped one about why the call ended.
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var e Error
	if json.Unmarshal(b, &e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s %s: %s: %s", method, url, resp.Status, bytes.TrimSpace(b))
	}
	return nil, &RemoteError{Message: e.Message, Code: e.Code}
}
