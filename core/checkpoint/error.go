package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// Causes a caller may want to tell apart with errors.Is. Causes that come from
// the system (ENOSPC, EIO, ...) are wrapped as they are.
var (
	ErrFormat     = errors.New("malformed file")           // the bytes break a rule of the format
	ErrTruncated  = errors.New("truncated file")           // the file ends before its data
	ErrMissing    = errors.New("missing tensor")           // a tensor that must be there is not
	ErrExtra      = errors.New("extra tensor")             // a tensor that must not be there is
	ErrShape      = errors.New("shape mismatch")           // one name, two shapes
	ErrExists     = errors.New("output exists")            // writing would replace something
	ErrInProgress = errors.New("unfinished write")         // another writer, living or killed, owns the folder
	ErrRecipe     = errors.New("different recipe")         // the journal belongs to other work
	ErrUnfinished = errors.New("tensors not yet complete") // Commit before every tensor was Done
)

// Error says what went wrong, where, and what would be right. File is a file or
// a folder; Tensor is empty when no single tensor is to blame.
type Error struct {
	Op     string // "read", "pair", "plan", "write", "resume", "commit", "copy", "hash"
	File   string
	Tensor string
	Reason string
	Hint   string
	Err    error // the cause, for errors.Is; may be nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("checkpoint: " + e.Op)
	if e.File != "" {
		b.WriteString(" " + e.File)
	}
	if e.Tensor != "" {
		fmt.Fprintf(&b, ": tensor %q", e.Tensor)
	}
	b.WriteString(": " + e.Reason)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// system wraps an error of the operating system; its text becomes the reason.
func system(op, file string, err error) *Error {
	reason := err
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		reason = p.Err // PathError repeats the path, which File has already
	}
	return &Error{Op: op, File: file, Reason: reason.Error(), Hint: remedy(err), Err: err}
}

// remedy is the next step after an error of the system, "" when there is no usual one.
func remedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "check the path: want a folder with " + singleName + " or " + indexName
	case errors.Is(err, fs.ErrPermission):
		return "check who owns it and its permissions"
	case errors.Is(err, syscall.ENOSPC):
		return "make room on the disk, then run the same command to go on"
	}
	return ""
}
