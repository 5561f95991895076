package pybind

import (
	"context"
	"encoding/json"
	"time"

	"github.com/trivium-ml/trivium/core"
)

// bridgeCheck asks the bridge to do one of the things that calls can do, so that
// `trivium doctor` and the tests see the real path of results, errors, panics and
// cancellation.
type bridgeCheck struct {
	SleepMilliseconds int64           `json:"sleep_ms"`
	Panic             string          `json:"panic"`
	Error             core.ErrorKind  `json:"error"`
	Message           string          `json:"message"`
	Hint              string          `json:"hint"`
	Strategy          string          `json:"strategy"`
	Plugin            string          `json:"plugin"`
	Echo              json.RawMessage `json:"echo"`
}

func checkBridge(ctx context.Context, request string) (string, error) {
	var check bridgeCheck
	if err := json.Unmarshal([]byte(request), &check); err != nil {
		return "", core.Invalid("", "request is no JSON object of bridge.check: %v", err)
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(time.Duration(check.SleepMilliseconds) * time.Millisecond):
	}
	if check.Panic != "" {
		panic(check.Panic)
	}
	if check.Error != "" {
		return "", &core.Error{Kind: check.Error, Message: check.Message, Hint: check.Hint,
			Strategy: check.Strategy, Plugin: check.Plugin}
	}
	if check.Echo == nil {
		return "null", nil
	}
	return string(check.Echo), nil
}
