package pybind

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trivium-ml/trivium/core"
)

// job is one submitted call. done is closed after result and err are set.
type job struct {
	cancel context.CancelFunc
	done   chan struct{}
	result string
	err    error

	progress atomic.Pointer[progress]
}

// jobTable owns every job from its start until its result is collected or forgotten.
type jobTable struct {
	mu   sync.Mutex
	jobs map[int64]*job
}

// jobs is the table of this process.
var jobs = newJobTable()

func newJobTable() *jobTable {
	return &jobTable{jobs: make(map[int64]*job)}
}

// start runs work in a goroutine of its own under a number that no job has; a
// positive timeout bounds it.
func (t *jobTable) start(id int64, timeout time.Duration, work func(context.Context) (string, error)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.jobs[id]; taken {
		return core.Invalid("", "job %d is taken", id)
	}
	ctx, cancel := bounded(timeout)
	j := &job{cancel: cancel, done: make(chan struct{})}
	t.jobs[id] = j
	go j.run(ctx, work)
	return nil
}

func bounded(timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout > 0 {
		return context.WithTimeout(context.Background(), timeout)
	}
	return context.WithCancel(context.Background())
}

func (j *job) run(ctx context.Context, work func(context.Context) (string, error)) {
	defer close(j.done)
	defer j.cancel()
	defer func() {
		if cause := recover(); cause != nil {
			j.result, j.err = "", panicError(cause)
		}
	}()
	j.result, j.err = work(withProgress(ctx, &j.progress))
}

func (t *jobTable) find(id int64) (*job, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, ok := t.jobs[id]
	if !ok {
		return nil, core.Invalid("", "job %d is unknown: its result was collected or forgotten", id)
	}
	return j, nil
}

// wait gives "" while the job still runs after limit. Otherwise it hands over the
// result and drops the job.
func (t *jobTable) wait(id int64, limit time.Duration) (string, error) {
	j, err := t.find(id)
	if err != nil {
		return "", err
	}
	if !j.finished(limit) {
		return "", nil
	}
	t.drop(id)
	return j.result, j.err
}

func (j *job) finished(limit time.Duration) bool {
	select {
	case <-j.done:
		return true
	default:
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-j.done:
		return true
	case <-timer.C:
		return false
	}
}

func (t *jobTable) drop(id int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.jobs, id)
}

func (t *jobTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.jobs)
}
