package pybind

import (
	"context"
	"time"

	"github.com/trivium-ml/trivium/core"
)

// operation is what Submit can run: JSON in, JSON out. It must return soon after ctx
// ends, since Python keeps the tensors of the request alive until then.
type operation func(ctx context.Context, request string) (string, error)

// work is an operation that has its request.
type work func(context.Context) (string, error)

// started is work that goes on outside of this process.
type started interface {
	// Wait waits on the calling thread; false: not over, perhaps sooner than limit.
	Wait(limit time.Duration) bool
	finish() (string, error)
}

// starter starts an operation on its caller's thread. It gives either what runs
// elsewhere by then, or the work still to be done.
type starter func(ctx context.Context, request string) (started, work, error)

// Submit starts an operation as a job. The caller numbers its jobs, so that it can
// cancel one whose Submit an interrupt kept it from seeing return. timeout is in
// milliseconds, 0 is none. It gives 1 when the plugin has been sent the work: nothing
// that is sent to the plugin later overtakes it. Otherwise 0.
func Submit(job int64, name string, request string, timeout int64) (sent int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	if timeout < 0 {
		return 0, core.Invalid("", "timeout %d ms: want 0 or more", timeout)
	}
	limit := time.Duration(timeout) * time.Millisecond
	if start, ok := starters[name]; ok {
		sent, err := jobs.begin(job, limit, request, start)
		if sent {
			return 1, err
		}
		return 0, err
	}
	run, ok := operations[name]
	if !ok {
		return 0, core.Invalid("", "operation %q is unknown", name)
	}
	return 0, jobs.start(job, limit, func(ctx context.Context) (string, error) {
		return run(ctx, request)
	})
}

// Wait gives "" while the job still runs after so many milliseconds, else its result.
// A result or an error is handed over once; the job is gone after that.
func Wait(job int64, milliseconds int64) (result string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	return jobs.wait(job, time.Duration(milliseconds)*time.Millisecond)
}

// Cancel asks the job to stop and returns at once; Wait then says how it ended.
func Cancel(job int64) (id int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	j, err := jobs.find(job)
	if err != nil {
		return 0, err
	}
	j.stop()
	return job, nil
}

// Forget cancels the job and drops it; nobody will see its result.
func Forget(job int64) (id int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	j, err := jobs.find(job)
	if err != nil {
		return 0, err
	}
	j.stop()
	jobs.drop(job)
	return job, nil
}

// Jobs counts the jobs that were neither collected nor forgotten.
func Jobs() (count int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	return int64(jobs.count()), nil
}
