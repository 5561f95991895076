package pybind

import (
	"testing"
	"time"
)

func TestLosses(t *testing.T) {
	l := lossCount{changed: make(chan struct{})}
	began := time.Now()
	l.ended()
	if took := time.Since(began); took > ackTime/2 {
		t.Errorf("it took %v with nobody watching", took)
	}
	if got := l.await(0, time.Minute); got != 1 {
		t.Fatalf("%d have ended, want 1", got)
	}
	handled := make(chan time.Time, 1)
	go func() {
		if got := l.await(1, time.Minute); got != 2 {
			t.Errorf("%d have ended, want 2", got)
		}
		time.Sleep(50 * time.Millisecond)
		handled <- time.Now()
		l.await(2, 0)
	}()
	time.Sleep(20 * time.Millisecond)
	l.ended()
	if done := time.Now(); done.Before(<-handled) {
		t.Error("it did not wait until the loss was handled")
	}
	began = time.Now()
	l.ended() // nobody handles this one
	if took := time.Since(began); took < ackTime || took > 10*ackTime {
		t.Errorf("it waited %v for nobody, want %v", took, ackTime)
	}
}
