package core

import (
	"context"
	"errors"
	"fmt"
)

// ErrorKind says what sort of thing went wrong. A kind has the same name in Go, on
// the wire and in Python, where each is a subclass of trivium.TriviumError.
type ErrorKind string

// The kinds of error. Append; a kind is never renamed.
const (
	ErrInvalidArgument   ErrorKind = "invalid_argument"
	ErrUnknownStrategy   ErrorKind = "unknown_strategy"
	ErrUnsupported       ErrorKind = "unsupported"
	ErrPluginMissing     ErrorKind = "plugin_missing"
	ErrPluginCrashed     ErrorKind = "plugin_crashed"
	ErrPluginRefused     ErrorKind = "plugin_refused"
	ErrDeadlineExceeded  ErrorKind = "deadline_exceeded"
	ErrCancelled         ErrorKind = "cancelled"
	ErrForkedProcess     ErrorKind = "forked_process"
	ErrEngineClosed      ErrorKind = "engine_closed"
	ErrCheckpoint        ErrorKind = "checkpoint"
	ErrDeviceUnavailable ErrorKind = "device_unavailable"
	ErrOutOfMemory       ErrorKind = "out_of_memory"
	ErrInternal          ErrorKind = "internal"
)

// ErrorKinds lists every kind, so that other languages can derive theirs.
func ErrorKinds() []ErrorKind {
	return []ErrorKind{ErrInvalidArgument, ErrUnknownStrategy, ErrUnsupported, ErrPluginMissing, ErrPluginCrashed,
		ErrPluginRefused, ErrDeadlineExceeded, ErrCancelled, ErrForkedProcess, ErrEngineClosed, ErrCheckpoint,
		ErrDeviceUnavailable, ErrOutOfMemory, ErrInternal}
}

// Error is what every exported function of Trivium fails with.
type Error struct {
	Kind     ErrorKind
	Message  string // what was wrong and what would be right, lower-case
	Hint     string // the next thing to do, may be empty
	Strategy string // dotted id such as "attention.flexprefill", may be empty
	Plugin   string // name of the plugin it happened in, may be empty
	Cause    error
}

func (e *Error) Error() string {
	text := e.Message
	if e.Strategy != "" {
		text = e.Strategy + ": " + text
	}
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is makes errors.Is(err, &Error{Kind: k}) match every error of kind k.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Message == ""
}

// WithHint returns e with the next step filled in.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Invalid is bad input to a strategy, or to the engine when strategy is "".
func Invalid(strategy, format string, args ...any) *Error {
	return &Error{Kind: ErrInvalidArgument, Strategy: strategy, Message: fmt.Sprintf(format, args...)}
}

// Errorf makes an error of a kind. A %w argument becomes its cause.
func Errorf(kind ErrorKind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// AsError turns any error into an *Error: contexts that ended become
// deadline_exceeded or cancelled, the unknown becomes internal.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var typed *Error
	if errors.As(err, &typed) {
		return typed
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Kind: ErrDeadlineExceeded, Message: "the call outlasted its deadline", Hint: "raise timeout=", Cause: err}
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Kind: ErrCancelled, Message: "the call was cancelled", Cause: err}
	}
	return &Error{Kind: ErrInternal, Message: err.Error(), Cause: err}
}
