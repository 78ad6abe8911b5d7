package supervisor

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// logs copies the logs of the nodes' services to the host's disk as they grow. The nodes do not write there
// themselves: they must write through, or a power cut would lose the lines that explain it, and on a real
// disk each line would then cost an fsync during which the whole node stands still. On tmpfs it is free.
type logs struct {
	dirs []logDir

	mu     sync.Mutex // guards copied, and that one copies at a time
	copied map[string]int64
}

type logDir struct{ from, to string }

func newLogs(work, logDirectory string, nodes int) *logs {
	l := &logs{copied: make(map[string]int64)}
	for id := 1; id <= nodes; id++ {
		name := "node" + strconv.Itoa(id)
		l.dirs = append(l.dirs, logDir{from: filepath.Join(work, name, "log"), to: filepath.Join(logDirectory, name)})
	}
	return l
}

func (l *logs) follow(ctx context.Context) {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			l.sync()
		case <-ctx.Done():
			return
		}
	}
}

// sync copies what has been added since the last time. Trouble with a log must not disturb the lab: what
// could not be copied is tried again the next time.
func (l *logs) sync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.dirs {
		entries, err := os.ReadDir(d.from)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				l.lockedCopy(filepath.Join(d.from, e.Name()), filepath.Join(d.to, e.Name()))
			}
		}
	}
}

func (l *logs) lockedCopy(from, to string) {
	in, err := os.Open(from)
	if err != nil {
		return
	}
	defer in.Close()
	st, err := in.Stat()
	// An empty log is copied once, so that it is there.
	if done, known := l.copied[from]; err != nil || known && st.Size() <= done {
		return
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	defer out.Close()
	n, _ := io.Copy(out, io.NewSectionReader(in, l.copied[from], st.Size()-l.copied[from]))
	l.copied[from] += n
}
