package parallel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
)

func TestEachRunsEveryPieceOnce(t *testing.T) {
	for _, threads := range []int{0, 1, 3, 100} {
		for _, n := range []int{0, 1, 50} {
			counts := make([]atomic.Int32, n)
			if err := Each(context.Background(), threads, n, func(i int) error { counts[i].Add(1); return nil }); err != nil {
				t.Fatal(err)
			}
			for i := range counts {
				if c := counts[i].Load(); c != 1 {
					t.Errorf("%d threads, %d pieces: piece %d ran %d times", threads, n, i, c)
				}
			}
		}
	}
}

func TestEachStopsAtAnError(t *testing.T) {
	broken, ran := errors.New("broken"), atomic.Int32{}
	err := Each(context.Background(), 2, 1000, func(i int) error {
		ran.Add(1)
		if i == 3 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || ran.Load() == 1000 {
		t.Errorf("error %v after %d pieces", err, ran.Load())
	}
}

func TestEachStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ran := 0
	err := Each(ctx, 1, 10, func(int) error { ran++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || ran != 1 {
		t.Errorf("error %v after %d pieces", err, ran)
	}
}
