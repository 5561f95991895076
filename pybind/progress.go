package pybind

import (
	"context"
	"encoding/json"
	"sync/atomic"
)

// progress is how far a job has come, in units of its own.
type progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// progressKey is the context key of the job's latest progress.
type progressKey struct{}

func withProgress(ctx context.Context, latest *atomic.Pointer[progress]) context.Context {
	return context.WithValue(ctx, progressKey{}, latest)
}

// reportProgress notes how far the job of ctx has come.
func reportProgress(ctx context.Context, done, total int64) {
	if latest, ok := ctx.Value(progressKey{}).(*atomic.Pointer[progress]); ok {
		latest.Store(&progress{done, total})
	}
}

// Progress gives how far a running job has come as {"done", "total"}, "" when it
// has not said.
func Progress(job int64) (text string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	j, err := jobs.find(job)
	if err != nil {
		return "", err
	}
	latest := j.progress.Load()
	if latest == nil {
		return "", nil
	}
	said, err := json.Marshal(latest)
	return string(said), err
}
