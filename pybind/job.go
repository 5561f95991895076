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
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	result string
	err    error

	// aside is what runs in the plugin and is waited for on the thread of Wait;
	// nil when a goroutine sees to the job.
	mu    sync.Mutex
	aside started

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
func (t *jobTable) start(id int64, timeout time.Duration, do work) error {
	j, err := t.add(id, timeout)
	if err != nil {
		return err
	}
	go j.run(do)
	return nil
}

// begin starts work on this thread, and goes on in a goroutine only if there is
// more to do here than to wait; sent says that there is not.
func (t *jobTable) begin(id int64, timeout time.Duration, request string, start starter) (sent bool, err error) {
	j, err := t.add(id, timeout)
	if err != nil {
		return false, err
	}
	var rest work
	_, err = guarded(func() (_ string, err error) {
		j.aside, rest, err = start(j.context(), request)
		return "", err
	})
	switch {
	case err != nil:
		j.end("", err)
	case rest != nil:
		go j.run(rest)
	default:
		return true, nil
	}
	return false, nil
}

func (t *jobTable) add(id int64, timeout time.Duration) (*job, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.jobs[id]; taken {
		return nil, core.Invalid("", "job %d is taken", id)
	}
	j := &job{done: make(chan struct{})}
	j.ctx, j.cancel = bounded(timeout)
	t.jobs[id] = j
	return j, nil
}

func bounded(timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout > 0 {
		return context.WithTimeout(context.Background(), timeout)
	}
	return context.WithCancel(context.Background())
}

func (j *job) context() context.Context { return withProgress(j.ctx, &j.progress) }

func (j *job) run(do work) {
	j.end(guarded(func() (string, error) { return do(j.context()) }))
}

func (j *job) end(result string, err error) {
	j.result, j.err = result, err
	j.cancel()
	close(j.done)
}

// guarded turns a panic of do into an error.
func guarded(do func() (string, error)) (result string, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			result, err = "", panicError(cause)
		}
	}()
	return do()
}

// stop cancels the job. Letting go of the plugin's memory may take a while, so
// that a goroutine sees to it.
func (j *job) stop() {
	j.cancel()
	j.mu.Lock() // whoever waits is woken by the end of the context
	defer j.mu.Unlock()
	if j.aside != nil {
		go j.run(j.finishing())
	}
}

// finishing takes what runs aside. The caller holds mu.
func (j *job) finishing() work {
	aside := j.aside
	j.aside = nil
	return func(context.Context) (string, error) { return aside.finish() }
}

// waitAside waits on this thread for what runs in the plugin.
func (j *job) waitAside(limit time.Duration) (over bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.aside == nil {
		return true
	}
	if !j.aside.Wait(limit) {
		return false
	}
	finish := j.finishing()
	if j.ctx.Err() == nil {
		j.run(finish)
		return true
	}
	go j.run(finish)
	return true
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
	if !j.waitAside(limit) {
		return false
	}
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
