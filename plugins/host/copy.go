package host

import (
	"runtime"
	"sync"
)

// copyGrain is the least that is worth a goroutine.
const copyGrain = 1 << 20

// parallelCopy copies with as many goroutines as help.
func parallelCopy(to, from []byte) {
	parallel(len(from), copyGrain, func(start, end int) { copy(to[start:end], from[start:end]) })
}

// parallel calls do for parts of [0, n) that together make up all of it, each of
// at least grain.
func parallel(n, grain int, do func(start, end int)) {
	parts := min(runtime.GOMAXPROCS(0), n/grain)
	if parts <= 1 {
		do(0, n)
		return
	}
	var group sync.WaitGroup
	for i := range parts {
		group.Go(func() { do(n*i/parts, n*(i+1)/parts) })
	}
	group.Wait()
}
