package pybind

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"github.com/trivium-ml/trivium/core"
)

// mostKept is how many requests are kept for "again". Python uses the latest of
// them only: half as many.
const mostKept = 512

// kept are the requests that calls may repeat.
var kept keptRequests

// keptRequests are requests by the caller's numbers, which grow by one.
type keptRequests struct {
	mu       sync.Mutex
	requests map[int64]*attendRequest
}

func (k *keptRequests) add(number int64, in *attendRequest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.requests == nil {
		k.requests = map[int64]*attendRequest{}
	}
	k.requests[number] = in
	delete(k.requests, number-mostKept)
}

func (k *keptRequests) find(number int64) (*attendRequest, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if in, ok := k.requests[number]; ok {
		return in, nil
	}
	return nil, core.Invalid("", "request %d is not kept", number)
}

// attendAgain is attend with a request like one that was kept: all that differs
// is sent, as numbers with spaces between them. They are its number, the layer, the
// addresses of query, key, value, output, lse and of the fences ready and done, and
// the value of the fences.
func attendAgain(ctx context.Context, request string) (started, work, error) {
	var n [10]int64
	if err := numbers(request, n[:]); err != nil {
		return nil, nil, err
	}
	like, err := kept.find(n[0])
	if err != nil {
		return nil, nil, err
	}
	in := *like
	in.Keep, in.Layer = 0, int(n[1])
	for i, a := range []**array{&in.Query, &in.Key, &in.Value, &in.Output, &in.LSE} {
		if *a != nil {
			moved := **a
			moved.Address = n[2+i]
			*a = &moved
		}
	}
	for i, f := range []**fence{&in.Ready, &in.Done} {
		moved := **f
		moved.Address, moved.Value = n[7+i], uint32(n[9])
		*f = &moved
	}
	return startAttend(ctx, &in)
}

// numbers reads as many integers as there is room for.
func numbers(text string, into []int64) error {
	fields := strings.Fields(text)
	if len(fields) != len(into) {
		return core.Invalid("", "request: %d numbers: want %d", len(fields), len(into))
	}
	for i, field := range fields {
		var err error
		if into[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return core.Invalid("", "request: %v", err)
		}
	}
	return nil
}
