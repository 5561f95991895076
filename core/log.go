package core

import "github.com/sirupsen/logrus"

// Field names of every log line; libraries log at debug level.
const (
	LogComponent = "component"
	LogPlugin    = "plugin"
	LogStrategy  = "strategy"
	LogPID       = "pid"
	LogElapsed   = "elapsed_ms"
)

// Quiet is the logger of an engine that was given none: it keeps warnings and
// what is worse.
func Quiet() *logrus.Logger {
	log := logrus.New()
	log.SetLevel(logrus.WarnLevel)
	return log
}
