package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// syncLogs makes the supervisor copy what the services have written until now. Without an answer (the lab may have
// ended) the logs are as they are.
func (l *Lab) syncLogs(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = l.call(ctx, http.MethodPost, "/logs/sync", nil, nil)
}

func (l *Lab) readLog(ctx context.Context, name string) ([]byte, error) {
	l.syncLogs(ctx)
	b, err := os.ReadFile(filepath.Join(l.logDir, name))
	if err != nil {
		return nil, &labError{kind: ErrNotFound, message: err.Error()}
	}
	return b, nil
}

// Dump writes all logs: the supervisor's, and each node's console and services. It works as long as the
// directory with the logs exists, also after Close.
func (l *Lab) Dump(w io.Writer) { l.dump(w, l.logDir, 1<<20) }

// Dump writes the node's logs.
func (n *Node) Dump(w io.Writer) { n.lab.dump(w, filepath.Join(n.lab.logDir, n.Name()), 1<<20) }

// summary is the last lines of all logs, for an error message.
func (l *Lab) summary() string {
	var b bytes.Buffer
	l.dump(&b, l.logDir, 16<<10)
	return b.String()
}

// dump writes at most the last limit bytes of each log under a directory.
func (l *Lab) dump(w io.Writer, dir string, limit int) {
	l.syncLogs(context.Background())
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Ext(path) != ".log" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(l.logDir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "===== %s (%d bytes) =====\n", name, len(b))
		if len(b) > limit {
			b = b[len(b)-limit:]
			fmt.Fprint(w, "[...]")
		}
		fmt.Fprintf(w, "%s\n", bytes.TrimRight(b, "\n"))
		return nil
	})
	if err != nil {
		fmt.Fprintf(w, "logs: %v\n", err)
	}
}
