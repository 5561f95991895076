package host

import "time"

const (
	breakerCrashes = 3
	breakerWindow  = time.Minute
)

// breaker stops the restarts of a plugin that only crashes: three crashes in a
// minute, none of them after a call that succeeded.
type breaker struct {
	crashes []time.Time
}

// crashed records a crash; served says that the incarnation had completed a call.
func (b *breaker) crashed(now time.Time, served bool) {
	if served {
		b.crashes = nil
	}
	b.crashes = append(b.crashes, now)
	if len(b.crashes) > breakerCrashes {
		b.crashes = b.crashes[1:]
	}
}

// wait is how long no restart is allowed; 0 when one is.
func (b *breaker) wait(now time.Time) time.Duration {
	if len(b.crashes) < breakerCrashes {
		return 0
	}
	return max(0, breakerWindow-now.Sub(b.crashes[0]))
}
