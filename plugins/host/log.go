package host

import (
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
)

// pluginLog lets go-plugin, and through it the plugin processes, log to logrus.
type pluginLog struct {
	entry   *logrus.Entry
	name    string
	implied []any
}

var _ hclog.Logger = (*pluginLog)(nil)

// routine are lines that go-plugin logs as warnings or errors although they
// belong to every stop; a crash is reported by the session, with its cause.
var routine = map[string]bool{
	"plugin failed to exit gracefully": true,
	"plugin process exited":            true,
	"error closing client during Kill": true,
	"reading plugin stderr":            true,
}

func (l *pluginLog) Log(level hclog.Level, message string, args ...any) {
	to := logrusLevel(level)
	if routine[message] {
		to = logrus.DebugLevel
	}
	if !l.entry.Logger.IsLevelEnabled(to) {
		return
	}
	fields := make(logrus.Fields, (len(l.implied)+len(args))/2+1)
	if l.name != "" {
		fields[core.LogComponent] = l.name
	}
	addFields(fields, l.implied)
	addFields(fields, args)
	l.entry.WithFields(fields).Log(to, message)
}

// addFields adds alternating keys and values; a key without a value is kept as "extra".
func addFields(fields logrus.Fields, args []any) {
	for i := 0; i+1 < len(args); i += 2 {
		fields[fmt.Sprint(args[i])] = args[i+1]
	}
	if len(args)%2 == 1 {
		fields["extra"] = args[len(args)-1]
	}
}

func (l *pluginLog) Trace(m string, args ...any) { l.Log(hclog.Trace, m, args...) }
func (l *pluginLog) Debug(m string, args ...any) { l.Log(hclog.Debug, m, args...) }
func (l *pluginLog) Info(m string, args ...any)  { l.Log(hclog.Info, m, args...) }
func (l *pluginLog) Warn(m string, args ...any)  { l.Log(hclog.Warn, m, args...) }
func (l *pluginLog) Error(m string, args ...any) { l.Log(hclog.Error, m, args...) }

func (l *pluginLog) IsTrace() bool { return l.entry.Logger.IsLevelEnabled(logrus.TraceLevel) }
func (l *pluginLog) IsDebug() bool { return l.entry.Logger.IsLevelEnabled(logrus.DebugLevel) }
func (l *pluginLog) IsInfo() bool  { return l.entry.Logger.IsLevelEnabled(logrus.InfoLevel) }
func (l *pluginLog) IsWarn() bool  { return l.entry.Logger.IsLevelEnabled(logrus.WarnLevel) }
func (l *pluginLog) IsError() bool { return l.entry.Logger.IsLevelEnabled(logrus.ErrorLevel) }

func (l *pluginLog) ImpliedArgs() []any { return l.implied }
func (l *pluginLog) Name() string       { return l.name }

func (l *pluginLog) With(args ...any) hclog.Logger {
	implied := append(l.implied[:len(l.implied):len(l.implied)], args...)
	return &pluginLog{entry: l.entry, name: l.name, implied: implied}
}

func (l *pluginLog) Named(name string) hclog.Logger {
	return l.ResetNamed(strings.TrimPrefix(l.name+"."+name, "."))
}

func (l *pluginLog) ResetNamed(name string) hclog.Logger {
	return &pluginLog{entry: l.entry, name: name, implied: l.implied}
}

// SetLevel does nothing: the level is the logrus logger's.
func (l *pluginLog) SetLevel(hclog.Level) {}

// GetLevel is asked by go-plugin, which drops plugin lines below it unparsed.
func (l *pluginLog) GetLevel() hclog.Level {
	switch l.entry.Logger.GetLevel() {
	case logrus.TraceLevel:
		return hclog.Trace
	case logrus.DebugLevel:
		return hclog.Debug
	case logrus.InfoLevel:
		return hclog.Info
	case logrus.WarnLevel:
		return hclog.Warn
	default:
		return hclog.Error
	}
}

func (l *pluginLog) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}

func (l *pluginLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return lineWriter(func(line string) { l.Debug(line) })
}

func logrusLevel(level hclog.Level) logrus.Level {
	switch level {
	case hclog.Trace:
		return logrus.TraceLevel
	case hclog.Info:
		return logrus.InfoLevel
	case hclog.Warn:
		return logrus.WarnLevel
	case hclog.Error:
		return logrus.ErrorLevel
	default:
		return logrus.DebugLevel
	}
}

// lineWriter calls itself with each non-empty line of what is written at once.
type lineWriter func(line string)

func (w lineWriter) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			w(line)
		}
	}
	return len(b), nil
}
