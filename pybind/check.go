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
	Deaf              bool            `json:"deaf"`     // sleep on when cancelled
	Progress          []int64         `json:"progress"` // done, total
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
	if len(check.Progress) == 2 {
		reportProgress(ctx, check.Progress[0], check.Progress[1])
	}
	if check.Deaf {
		ctx = context.WithoutCancel(ctx)
	}
	if err := sleep(ctx, time.Duration(check.SleepMilliseconds)*time.Millisecond); err != nil {
		return "", err
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

func sleep(ctx context.Context, duration time.Duration) error {
	if duration <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(duration):
		return nil
	}
}
