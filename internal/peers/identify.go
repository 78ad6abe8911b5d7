package peers

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// whichPatience bounds how long a path is looked at for a peer: somewhat less than
// whoever asks there waits, so that it is told what hangs.
const whichPatience = 600 * time.Millisecond

// Bounds of what is told of a disk, in bytes but for maxSteps.
const (
	maxDiskName = 2 * maxPath
	maxStep     = 2 * maxPath
	maxSteps    = 64
)

// whichBody asks which disk a path is.
type whichBody struct {
	Path []byte `json:"path"`
}

// diskBody says it. Paths are bytes, and JSON has none but as base64.
type diskBody struct {
	Path     []byte   `json:"path,omitempty"`
	Type     string   `json:"type,omitempty"`
	Scope    string   `json:"scope,omitempty"`
	Name     []byte   `json:"name,omitempty"`
	Resource string   `json:"resource,omitempty"`
	ByPath   bool     `json:"by_path,omitempty"`
	Doubt    bool     `json:"doubt,omitempty"`
	Steps    []string `json:"steps,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Identify asks all other members which disk a path is there. It returns when all
// have answered or ctx ends (after 0.8 s, if it has no deadline), with an entry for
// each, by node. The error is that of Holdings.
func (p *Peers) Identify(ctx context.Context, path string) ([]NodeDisk, error) {
	ctx, cancel := patience(ctx)
	defer cancel()
	if path == "" || len(path) > maxPath {
		return nil, fmt.Errorf("a path of %d bytes", len(path))
	}
	if !turn(ctx, p.lists) {
		return nil, ErrBusy
	}
	defer func() { <-p.lists }()
	q, err := p.ask(ctx, kindWhich, whichBody{Path: []byte(path)}, false)
	list := make([]NodeDisk, 0, len(q.answers))
	for m, r := range q.answers {
		d := NodeDisk{Node: m.Node, PID: m.PID, Name: r.name, Err: r.err}
		if d.Err == nil && len(r.pages) > 0 {
			d.Disk, d.Err = decodeDisk(r.pages[0])
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b NodeDisk) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.PID, b.PID)) })
	return list, err
}

// lockedWhich takes a question, unless it is one too many.
func (p *Peers) lockedWhich(m *peer, from corosync.Member, h header, body []byte) error {
	if from == p.me || p.opts.Identify == nil {
		return nil
	}
	path, err := decodeWhich(body)
	if err != nil {
		return err
	}
	if m.naming.take(1, time.Now()) {
		select {
		case p.naming <- request{from: from, id: h.query, path: path}:
			return nil
		default:
		}
	}
	p.lockedDrop(m)
	return nil
}

func (p *Peers) answerWhich(ctx context.Context, r request) {
	look, cancel := context.WithTimeout(ctx, whichPatience)
	d := p.opts.Identify(look, r.path)
	cancel()
	h := header{kind: kindDisk, flags: flagLast, query: r.id, asker: r.from}
	b, err := encodeDisk(h, d)
	if err == nil {
		send, cancel := context.WithTimeout(ctx, answerPatience)
		err = p.opts.Group.Send(send, b)
		cancel()
	}
	if err != nil {
		p.log.Debug("peers: an answer was not sent", "node", r.from.Node, "error", err)
		return
	}
	p.mu.Lock()
	p.stats.Answered++
	p.mu.Unlock()
}

// maxWhich bounds, in bytes, the body of a kindWhich: base64 makes 4 of 3.
const maxWhich = 2*maxPath + maxQuery

func decodeWhich(body []byte) (string, error) {
	if len(body) > maxWhich {
		return "", errBody
	}
	var w whichBody
	if err := json.Unmarshal(body, &w); err != nil {
		return "", err
	}
	if len(w.Path) == 0 || len(w.Path) > maxPath {
		return "", fmt.Errorf("a path of %d bytes", len(w.Path))
	}
	return string(w.Path), nil
}

// encodeDisk leaves out the last steps if there is no room for them.
func encodeDisk(h header, d Disk) ([]byte, error) {
	d = d.cut()
	body := diskBody{
		Path: []byte(d.Path), Type: d.Type, Scope: d.Scope, Name: []byte(d.Name), Resource: d.Resource,
		ByPath: d.ByPath, Doubt: d.Doubt, Steps: d.Steps, Error: d.Error,
	}
	for {
		b, err := encode(h, body)
		if err == nil || len(body.Steps) == 0 {
			return b, err
		}
		body.Steps = body.Steps[:len(body.Steps)/2]
	}
}

func decodeDisk(body []byte) (Disk, error) {
	var d diskBody
	if err := json.Unmarshal(body, &d); err != nil {
		return Disk{}, fmt.Errorf("%w: it cannot be read: %w", ErrIncomplete, err)
	}
	return Disk{
		Path: string(d.Path), Type: d.Type, Scope: d.Scope, Name: string(d.Name), Resource: d.Resource,
		ByPath: d.ByPath, Doubt: d.Doubt, Steps: d.Steps, Error: d.Error,
	}.cut(), nil
}

// cut makes it as long as it may be, and its texts printable.
func (d Disk) cut() Disk {
	d.Path, d.Name = d.Path[:min(len(d.Path), maxPath)], d.Name[:min(len(d.Name), maxDiskName)]
	d.Type, d.Scope, d.Resource = clean(d.Type, maxShort), clean(d.Scope, maxShort), clean(d.Resource, maxResource)
	d.Error = clean(d.Error, maxStep)
	steps := make([]string, 0, min(len(d.Steps), maxSteps))
	for _, s := range d.Steps[:min(len(d.Steps), maxSteps)] {
		steps = append(steps, clean(s, maxStep))
	}
	d.Steps = steps
	return d
}
