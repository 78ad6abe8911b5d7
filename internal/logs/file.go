package logs

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// logFile is one that records are appended to.
type logFile struct {
	path string
	f    *os.File
}

// openFile opens or makes a file. It does not wait for who reads from a pipe.
func openFile(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		if err == nil {
			err = &fs.PathError{Op: "open", Path: path, Err: syscall.EINVAL}
		}
		return nil, err
	}
	return &logFile{path, f}, nil
}

func (l *logFile) close() { l.f.Close() }

var errNoFile = errors.New("there is no file")

// fileWriter appends to the file that the rules name when a record is logged.
type fileWriter struct{ *shared }

func (w fileWriter) Write(p []byte) (int, error) {
	f := w.rules.Load().file
	if f == nil { // they have just been replaced
		return 0, errNoFile
	}
	return queuedWriter{w.queue, f.f}.Write(p)
}
