package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

const (
	// A process that answers no question for heartbeatTimeout is stopped: it is
	// wedged, and the deadlines of its calls may be far away.
	heartbeatInterval = 10 * time.Second
	heartbeatTimeout  = 30 * time.Second

	// watchInterval is how often a confined process is looked at for what no
	// limit of the kernel bounds.
	watchInterval = 100 * time.Millisecond
	maxThreads    = 512
)

// watchOver stops the process when it is wedged or takes too much, until it ends.
func (s *Session) watchOver(confined bool) {
	heartbeat := time.NewTicker(heartbeatInterval)
	defer heartbeat.Stop()
	var look <-chan time.Time
	if confined {
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-s.child.exited:
			return
		case <-heartbeat.C:
			go s.heartbeat()
		case <-look:
			if n := threadsOf(s.PID); n > maxThreads {
				s.condemn(fmt.Sprintf("stopped: it ran %d threads, and may run %d", n, maxThreads))
				return
			}
		}
	}
}

// heartbeat asks for the end of a call that there never was.
func (s *Session) heartbeat() {
	ctx, cancel := context.WithTimeout(context.Background(), heartbeatTimeout)
	defer cancel()
	err := s.Conn.Invoke(ctx, pb.CatalogService_Settle_FullMethodName, &pb.SettleRequest{}, &pb.SettleResponse{}, callOptions...)
	if err != nil && ctx.Err() != nil && status.Code(err) != codes.Unavailable {
		s.condemn(fmt.Sprintf("stopped: it answered nothing for %v", heartbeatTimeout))
	}
}

// condemn kills the process for a reason, which its crash then tells.
func (s *Session) condemn(reason string) {
	s.condemned.CompareAndSwap(nil, &reason)
	_ = s.child.Kill(context.Background()) // fails when it has ended already
}

// threadsOf counts the threads of a process; 0 when it is gone.
func threadsOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("\nThreads:\t"))
	number, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.Atoi(string(number))
	if err != nil {
		return 0
	}
	return n
}
