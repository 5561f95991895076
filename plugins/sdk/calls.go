package sdk

import (
	"context"
	"sync"

	"github.com/trivium-ml/trivium/core"
)

// calls knows which calls are running, so that the host can ask when one that
// it cancelled has let go of its memory.
type calls struct {
	mu      sync.Mutex
	running map[uint64]running
}

type running struct {
	done   chan struct{}
	cancel context.CancelFunc
}

// begin records a call until the returned function is called; cancel ends its
// context.
//
// A call that the host cancelled before it began must not begin: the host may
// have asked for it already. Looking at ctx after the call is recorded is
// enough, since the cancellation was received before the question.
func (c *calls) begin(ctx context.Context, cancel context.CancelFunc, id uint64) (end func(), err error) {
	done := make(chan struct{})
	c.mu.Lock()
	if _, taken := c.running[id]; taken || id == 0 {
		c.mu.Unlock()
		return nil, core.Invalid("", "message: call_id %d: want one that is not in use, nor 0", id)
	}
	if c.running == nil {
		c.running = make(map[uint64]running)
	}
	c.running[id] = running{done, cancel}
	c.mu.Unlock()
	end = func() {
		c.mu.Lock()
		delete(c.running, id)
		c.mu.Unlock()
		close(done)
	}
	if ctx.Err() != nil {
		end()
		return nil, core.AsError(ctx.Err())
	}
	return end, nil
}

// settle returns when the call is not running; it cancels it first if asked to.
func (c *calls) settle(ctx context.Context, id uint64, cancel bool) error {
	c.mu.Lock()
	call, found := c.running[id]
	c.mu.Unlock()
	if !found {
		return nil
	}
	if cancel {
		call.cancel()
	}
	select {
	case <-call.done:
		return nil
	case <-ctx.Done():
		return core.AsError(ctx.Err())
	}
}
