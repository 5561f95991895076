package pybind

import (
	"io"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
)

// pipe is the end of a pipe that Python holds open and reads log entries from,
// a line of JSON each. It does not block: what does not fit is dropped, since a
// reader that has stopped must not stop a call.
type pipe int

// Write implements io.Writer.
func (p pipe) Write(entry []byte) (int, error) {
	if n, err := unix.Write(int(p), entry); err == nil {
		return n, nil
	}
	return len(entry), nil
}

// newLog makes the log of an engine: entries for Python's logging when there is
// a pipe, else text on stderr.
func newLog(in engineConfig) (*logrus.Logger, error) {
	level, err := logrus.ParseLevel(in.LogLevel)
	if err != nil {
		return nil, core.Invalid("", "log_level %q: want debug, info, warning or error", in.LogLevel)
	}
	log := core.Quiet()
	log.SetLevel(level)
	var out io.Writer = os.Stderr
	if in.LogPipe > 0 {
		log.SetFormatter(&logrus.JSONFormatter{})
		out = pipe(in.LogPipe)
	}
	log.SetOutput(out)
	return log, nil
}
