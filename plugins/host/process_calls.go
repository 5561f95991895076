package host

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// settleTime bounds how long a broken call waits to learn whether the process
// died. The connection breaks a moment before the death is known.
const settleTime = 90 * time.Millisecond

func (s *Session) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if ownMethod(method) || method == pb.CatalogService_Settle_FullMethodName {
		return s.outcome(ctx, method, invoke(ctx, method, req, reply, conn, opts...))
	}
	if err := s.enter(ctx, method); err != nil {
		return err
	}
	defer func() { <-s.slots }()
	if !s.log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		return s.outcome(ctx, method, invoke(ctx, method, req, reply, conn, opts...))
	}
	began := time.Now()
	err := s.outcome(ctx, method, invoke(ctx, method, req, reply, conn, opts...))
	s.trace(method, req, time.Since(began), err)
	return err
}

const (
	// maxCalls is how many calls a process works on at a time, and maxWaiting how
	// many more wait for one of those to end.
	maxCalls   = 128
	maxWaiting = 1024
)

// enter takes a slot, which the caller gives back.
func (s *Session) enter(ctx context.Context, method string) error {
	select {
	case s.slots <- struct{}{}:
		return nil
	default:
	}
	if s.waiting.Add(1) > maxWaiting {
		s.waiting.Add(-1)
		return s.ended(core.ErrPluginRefused, "has too many calls: %s", method, nil).
			WithHint("it works on %d calls, and %d wait: wait for some to end", maxCalls, maxWaiting)
	}
	defer s.waiting.Add(-1)
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return s.outcome(ctx, method, status.FromContextError(context.Cause(ctx)).Err())
	}
}

// trace logs one call for `trivium plugin trace`.
func (s *Session) trace(method string, req any, took time.Duration, err error) {
	fields := logrus.Fields{core.LogPlugin: s.name, core.LogPID: s.PID, "method": method, "us": took.Microseconds()}
	if named, ok := req.(interface{ GetStrategy() string }); ok {
		fields["strategy"] = named.GetStrategy()
	}
	if err != nil {
		fields["error"] = err.Error()
	}
	s.log.WithFields(fields).Debug("plugin call")
}

func (s *Session) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if ownMethod(method) {
		return stream, err
	}
	if err != nil {
		return nil, s.outcome(ctx, method, err)
	}
	return &sessionStream{ClientStream: stream, session: s, method: method}, nil
}

// sessionStream gives the errors of a stream the types that calls have.
type sessionStream struct {
	grpc.ClientStream
	session *Session
	method  string
}

func (t *sessionStream) SendMsg(m any) error {
	err := t.ClientStream.SendMsg(m)
	if err == nil || errors.Is(err, io.EOF) { // EOF: RecvMsg has the reason
		return err
	}
	return t.session.outcome(t.Context(), t.method, err)
}

func (t *sessionStream) RecvMsg(m any) error {
	err := t.ClientStream.RecvMsg(m)
	if errors.Is(err, io.EOF) {
		return err
	}
	return t.session.outcome(t.Context(), t.method, err)
}

// ownMethod reports whether go-plugin itself makes the call.
func ownMethod(method string) bool { return strings.HasPrefix(method, "/plugin.") }

// outcome gives the errors of the transport their type; the plugin's own pass.
func (s *Session) outcome(ctx context.Context, method string, err error) error {
	if ownMethod(method) {
		return err
	}
	if err == nil {
		s.served.Store(true)
		return nil
	}
	st := status.Convert(err)
	if len(st.Details()) > 0 { // the plugin answered
		return err
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		return s.ended(core.ErrDeadlineExceeded, "did not answer %s in time", method, err).
			WithHint("raise timeout=, or make the call smaller")
	case codes.Canceled:
		if ctx.Err() != nil {
			return s.ended(core.ErrCancelled, "call of %s was cancelled", method, err)
		}
		return s.broken(method, err)
	case codes.Unavailable:
		return s.broken(method, err)
	}
	return err
}

// broken is the error of a call whose connection failed. A process that was
// asked to stop is waited for: it is gone within the grace period.
func (s *Session) broken(method string, err error) error {
	wait := settleTime
	if s.stopping.Load() {
		wait = 2 * gracePeriod
	}
	select {
	case <-s.done:
		return s.err
	case <-time.After(wait):
		return s.ended(core.ErrPluginCrashed, "lost its connection during %s", method, err).WithHint("call again")
	}
}

func (s *Session) ended(kind core.ErrorKind, format, method string, cause error) *core.Error {
	e := core.Errorf(kind, "plugin %s "+format, s.name, method)
	e.Plugin, e.Cause = s.name, cause
	return e
}
