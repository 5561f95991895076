package cpu

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// threadCount is how many goroutines work on n items.
func threadCount(threads, n int) int {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	return max(1, min(threads, n))
}

// forEach calls work(worker, i) for each i below n, in rising order of start,
// on that many goroutines. It stops taking items when ctx is cancelled.
func forEach(ctx context.Context, threads, n int, work func(worker, i int)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var next atomic.Int64
	loop := func(worker int) {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			work(worker, i)
		}
	}
	var others sync.WaitGroup
	for worker := 1; worker < threads; worker++ {
		others.Go(func() { loop(worker) })
	}
	loop(0)
	others.Wait()
	return ctx.Err()
}

// queue is the items [next, end) of a list that one kv head is needed for, and how many
// workers are at them.
type queue struct {
	next, end, workers int
}

// queues deal out the items of a list, each worker its own kv head's as long as there
// are enough of them: what it packs and reads then stays in its own cache.
type queues struct {
	sync.Mutex
	list []queue
}

// take gives a worker that is at queue `at` (-1: at none) its next item and the one
// that will probably follow, -1 if none is left.
func (q *queues) take(at int) (queue, item, following int) {
	q.Lock()
	defer q.Unlock()
	if at < 0 || q.list[at].next == q.list[at].end {
		if at >= 0 {
			q.list[at].workers--
		}
		if at = q.longest(); at < 0 {
			return -1, -1, -1
		}
		q.list[at].workers++
	}
	l := &q.list[at]
	item = l.next
	l.next++
	if following = item + l.workers; following >= l.end {
		following = -1
	}
	return at, item, following
}

// longest is the queue with the most items for each of its workers, this one included; -1
// if all are empty.
func (q *queues) longest() int {
	best := -1
	for i := range q.list {
		l := &q.list[i]
		if l.next == l.end {
			continue
		}
		if best < 0 || (l.end-l.next)*(q.list[best].workers+1) > (q.list[best].end-q.list[best].next)*(l.workers+1) {
			best = i
		}
	}
	return best
}

// forEachQueued calls work(worker, item, following) for each item of some queues, on that
// many goroutines. It stops taking items when ctx is cancelled.
func forEachQueued(ctx context.Context, threads int, list []queue, work func(worker, item, following int)) error {
	q := &queues{list: list}
	return forEach(ctx, threads, threads, func(worker, _ int) {
		at, item, following := q.take(-1)
		for item >= 0 && ctx.Err() == nil {
			work(worker, item, following)
			at, item, following = q.take(at)
		}
	})
}

// raiseOn sets flag when ctx is cancelled; call the result when nothing reads
// the flag any more.
func raiseOn(ctx context.Context, flag *int32) (lower func()) {
	raised := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		atomic.StoreInt32(flag, 1)
		close(raised)
	})
	return func() {
		if !stop() {
			<-raised
		}
		atomic.StoreInt32(flag, 0)
	}
}
