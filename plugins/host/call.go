package host

import (
	"context"
	"errors"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// promptTime is how long a call that was cancelled waits for its plugin when it
// need not: nearly all let go within it, and then nothing is set aside.
const promptTime = 100 * time.Millisecond

var callOptions = []grpc.CallOption{
	grpc.MaxCallRecvMsgSize(plugins.MaxMessage), grpc.MaxCallSendMsgSize(plugins.MaxMessage),
}

// call is one call of a plugin and the memory that it may touch.
type call struct {
	service *service
	process *Process
	session *Session
	id      uint64

	segments []*shm.Segment // a reference to each is ours
	files    map[fileKey]*shm.File
	back     []func() // copies outputs out of shared memory
	writes   bool     // the plugin writes to memory that the caller can see
	open     bool     // the plugin may still be at work
	lane     bool     // the lane of the session is ours

	copied     int64
	copyTime   time.Duration
	copiedFrom []string // names of the tensors that were copied
}

// call runs a call: do puts memory in place, invokes the plugin, and takes the
// results. Its error says which plugin and strategy it is of.
func (s *strategy) call(ctx context.Context, do func(context.Context, *call) error) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.service.reload(); err != nil {
		return s.service.blame(err)
	}
	c, err := s.service.begin()
	if err != nil {
		return err
	}
	if c.session, err = s.service.session(ctx, c.process); err == nil {
		err = do(ctx, c)
	}
	return s.end(c, err)
}

// bounded gives every call a deadline.
func (s *strategy) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.service.host.options.CallTimeout)
}

// begin admits a call, which end ends.
func (s *service) begin() (*call, error) {
	if err := s.host.begin(); err != nil {
		return nil, err
	}
	return &call{service: s, process: s.hold(), id: s.host.calls.Add(1)}, nil
}

// end gives the memory of a call back and blames its error.
func (s *strategy) end(c *call, err error) error {
	c.finish()
	s.service.host.bytesCopied.Add(c.copied)
	if err == nil {
		return nil
	}
	typed := s.service.blame(err)
	if typed.Strategy == "" {
		typed.Strategy = s.info.ID()
	}
	return typed
}

// invoke makes the remote call. It notes whether the plugin answered: if not,
// it may still be at work.
func (c *call) invoke(remote func() error) error {
	c.open = true
	return c.answered(remote())
}

// answered notes whether the plugin answered, which its own errors say too.
func (c *call) answered(err error) error {
	if err == nil {
		c.open = false
		return nil
	}
	if answer, ok := wire.DecodeError(err); ok {
		c.open = false
		if answer.Kind == core.ErrPluginCrashed {
			c.session.replace()
		}
		return answer
	}
	return err
}

// finish gives the memory back, when the plugin no longer touches it.
func (c *call) finish() {
	if !c.open {
		c.release()
		return
	}
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		c.settle()
		c.release()
	}()
	if c.writes {
		<-settled
		return
	}
	select {
	case <-settled:
	case <-time.After(promptTime):
	}
}

// settle returns when the plugin has let go of the call, if need be because it
// was killed.
func (c *call) settle() {
	grace := c.service.grace()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_, err := pb.NewCatalogServiceClient(c.session.Conn).Settle(ctx, &pb.SettleRequest{CallId: c.id, Cancel: c.lane}, callOptions...)
	if err == nil {
		return
	}
	if c.session.Err() == nil {
		c.service.host.options.Log.WithFields(logrus.Fields{core.LogPlugin: c.service.plugin, core.LogPID: c.session.PID}).
			Warnf("killed: it did not let go of a cancelled call within %v", grace)
		// Fails only when the process has ended already.
		_ = c.session.child.Kill(context.Background())
	}
	<-c.session.Done()
}

func (c *call) release() {
	if c.lane {
		c.session.Lane.Release()
		c.lane = false
	}
	pool := c.service.host.pool
	for _, s := range c.segments {
		if err := pool.Put(s); err != nil {
			c.service.host.options.Log.WithField(core.LogPlugin, c.service.plugin).Error(err)
		}
	}
	for _, f := range c.files {
		f.Close()
	}
	c.segments, c.files = nil, nil
	c.service.letGo(c.process)
	c.service.host.inFlight.Done()
}

// blame types an error and says which plugin it is of.
func (s *service) blame(err error) *core.Error {
	var typed *core.Error
	if !errors.As(err, &typed) {
		if answer, ok := wire.DecodeError(err); ok {
			typed = answer
		} else {
			typed = core.AsError(err)
		}
	}
	// Errors may be shared, as those of a crash are.
	blamed := *typed
	if blamed.Plugin == "" {
		blamed.Plugin = s.plugin
	}
	return &blamed
}

// badAnswer is the error for an answer of a plugin that breaks the contract.
func badAnswer(err error) error {
	if err == nil {
		return nil
	}
	return core.Errorf(core.ErrInternal, "the plugin answered with %w", err).WithHint("this is a mistake in the plugin")
}
