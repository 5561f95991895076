package pybind

import (
	"encoding/json"
	"errors"
	"runtime/debug"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
)

// errorMarker starts every error text, so that Python can tell ours from others.
const errorMarker = "TRIVIUM"

// wireError is core.Error without its cause.
type wireError struct {
	Kind     core.ErrorKind `json:"kind"`
	Message  string         `json:"message"`
	Hint     string         `json:"hint,omitempty"`
	Strategy string         `json:"strategy,omitempty"`
	Plugin   string         `json:"plugin,omitempty"`
}

// guard ends every exported function: `defer guard(&err)`. It turns a panic into an
// error and the error into the text that Python decodes.
func guard(err *error) {
	if cause := recover(); cause != nil {
		*err = panicError(cause)
	}
	if *err != nil {
		*err = encodeError(*err)
	}
}

// panicError logs the stack of the panic being recovered and describes it.
func panicError(cause any) error {
	logrus.WithField("stack", string(debug.Stack())).Errorf("panic below Python: %v", cause)
	return core.Errorf(core.ErrInternal, "E_INTERNAL: %v", cause).WithHint("this is a bug in trivium; the log has the stack")
}

func encodeError(err error) error {
	e := core.AsError(err)
	text, fault := json.Marshal(wireError{e.Kind, e.Message, e.Hint, e.Strategy, e.Plugin})
	if fault != nil {
		return err
	}
	return errors.New(errorMarker + string(text))
}

// ErrorKinds lists every kind of error as a JSON array.
func ErrorKinds() (kinds string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	text, err := json.Marshal(core.ErrorKinds())
	return string(text), err
}
