package sdktest

import (
	"context"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
)

// trainLength is of the model that plans are asked for.
const trainLength = 2048

// position tries a position strategy.
func (s *suite) position(t *testing.T) {
	t.Run("plans", s.plans)
	t.Run("errors", s.positionErrors)
	t.Run("leaks", s.positionLeaks)
	t.Run("crash", s.positionCrash)
}

func frequencies(headDim int) []float64 {
	list := make([]float64, headDim/2)
	for i := range list {
		list[i] = math.Pow(10000, -float64(2*i)/float64(headDim))
	}
	return list
}

// plan asks without the engine's cache in between: each length is another request.
func (s *suite) plan(t *testing.T, headDim int, length int64) *core.PositionPlan {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	plan, err := s.engine.Plan(ctx, s.info.Name, &core.PositionRequest{
		HeadDim: headDim, InvFreq: frequencies(headDim), Length: length, TrainLength: trainLength,
	})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// plans checks that every pair of positions lies in one band and has a finite
// relative position there, and that the same request gives the same plan.
func (s *suite) plans(t *testing.T) {
	for _, headDim := range []int{2, 64, 128} {
		for _, length := range []int64{1, 7, 2048, 2049, 100_000} {
			plan := s.plan(t, headDim, length) // validated by the engine
			for _, pair := range [][2]int64{{0, 0}, {length - 1, 0}, {length - 1, length - 1}, {length - 1, length / 2}, {length / 2, length / 3}} {
				m, n := pair[0], pair[1]
				bands := 0
				for _, b := range plan.Bands {
					if b.Contains(m, n) {
						bands++
					}
				}
				if bands != 1 {
					t.Fatalf("length %d: query %d and key %d lie in %d bands: want 1", length, m, n, bands)
				}
				if r := plan.Relative(m, n); math.IsNaN(r) || math.IsInf(r, 0) {
					t.Fatalf("length %d: query %d and key %d are at the relative position %g", length, m, n, r)
				}
			}
			if again := s.fresh(t, headDim, length); !reflect.DeepEqual(plan, again) {
				t.Errorf("length %d: the same request gave two plans:\n%+v\n%+v", length, plan, again)
			}
		}
	}
}

// fresh asks for a plan through an engine that has not cached it.
func (s *suite) fresh(t *testing.T, headDim int, length int64) *core.PositionPlan {
	t.Helper()
	registry := core.NewRegistry()
	if err := s.host.Register(registry); err != nil {
		t.Fatal(err)
	}
	other := *s
	other.engine = core.NewEngine(registry, nil)
	return other.plan(t, headDim, length)
}

func (s *suite) positionErrors(t *testing.T) {
	for name, params := range s.badParameters() {
		_, err := s.engine.Plan(t.Context(), s.info.Name, &core.PositionRequest{
			HeadDim: 64, InvFreq: frequencies(64), Length: 4096, TrainLength: trainLength, Params: params,
		})
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		s.want(t, err, core.ErrInvalidArgument)
	}
}

func (s *suite) positionLeaks(t *testing.T) {
	s.plan(t, 64, 10_000)
	descriptors := s.descriptors(t)
	for i := range 100 {
		s.plan(t, 64, int64(10_001+i))
	}
	if after := s.descriptors(t); after > descriptors+2 {
		t.Errorf("%d descriptors are open in the plugin, %d were 100 calls before", after, descriptors)
	}
}

func (s *suite) positionCrash(t *testing.T) {
	s.plan(t, 64, 20_000)
	s.killDuring(t, func(ctx context.Context) error {
		for i := range int64(1_000_000) {
			req := &core.PositionRequest{HeadDim: 64, InvFreq: frequencies(64), Length: 30_000 + i, TrainLength: trainLength}
			if _, err := s.engine.Plan(ctx, s.info.Name, req); err != nil {
				return err
			}
		}
		return nil
	})
	s.plan(t, 64, 20_001)
}
