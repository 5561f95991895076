package pybind

import (
	"sync"
	"time"
)

// ackTime is how long a plugin process that ended keeps its successor waiting
// for Python to let go of what it waited for on devices.
const ackTime = time.Second

// losses counts attention processes that ended: work that they had promised on
// devices never ends by itself.
var losses = lossCount{changed: make(chan struct{})}

type lossCount struct {
	mu      sync.Mutex
	count   int64
	handled int64
	watched bool          // somebody awaits, from the first time on
	changed chan struct{} // closed at each change
}

// ended counts one and waits until the watcher, if there is one, has handled it.
func (l *lossCount) ended() {
	l.mu.Lock()
	l.count++
	mine := l.count
	l.change()
	l.mu.Unlock()
	for limit := time.Now().Add(ackTime); ; {
		l.mu.Lock()
		over, changed := !l.watched || l.handled >= mine, l.changed
		l.mu.Unlock()
		left := time.Until(limit)
		if over || left <= 0 {
			return
		}
		select {
		case <-changed:
		case <-time.After(left):
		}
	}
}

// await says that so many were handled, and returns the count when there are
// more, or after limit.
func (l *lossCount) await(handled int64, limit time.Duration) int64 {
	l.mu.Lock()
	l.watched = true
	if handled > l.handled {
		l.handled = handled
		l.change()
	}
	count, changed := l.count, l.changed
	l.mu.Unlock()
	if count > handled {
		return count
	}
	select {
	case <-changed:
	case <-time.After(limit):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// change wakes whoever waits. The caller holds mu.
func (l *lossCount) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// AwaitLoss returns how many attention processes have ended once that is more
// than handled, or after so many milliseconds. It says that so many were
// handled: until then their successors do not start, for a moment.
func AwaitLoss(handled int64, milliseconds int64) (count int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	return losses.await(handled, time.Duration(milliseconds)*time.Millisecond), nil
}
