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
