package core_test

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/trivium-ml/trivium/core"
)

// halved believes that tokens are half as far apart as they are.
type halved struct{}

func (halved) Info() core.Info {
	return core.Info{Name: "halved", Kind: core.Position, Summary: "half the distance", License: "Apache-2.0", Version: "1.0.0",
		Parameters: []core.Parameter{{Name: "factor", Type: core.Float, Default: 0.5, Min: core.Bound(0), OpenMin: true, Doc: "of each distance"}}}
}

func (halved) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	rule := core.Rule{Scale: req.Params.Float("factor")}
	return &core.PositionPlan{InvFreq: req.InvFreq, AppliedInvFreq: req.InvFreq, AttentionScale: 1,
		Bands: []core.Band{{Chunk: 1, Low: math.MinInt64, High: math.MaxInt64, Query: rule, Key: rule}}}, nil
}

// The engine is a library: register strategies, or a plugin host's, and call
// them by name.
func Example() {
	registry := core.NewRegistry()
	if err := registry.Register(halved{}); err != nil {
		panic(err)
	}
	engine := core.NewEngine(registry, nil)
	defer engine.Close()

	request := &core.PositionRequest{HeadDim: 2, InvFreq: []float64{1}, Length: 100}
	plan, err := engine.Plan(context.Background(), "halved", request)
	if err != nil {
		panic(err)
	}
	fmt.Println("query 90, key 10:", plan.Relative(90, 10))

	_, err = engine.Plan(context.Background(), "halve", request)
	fmt.Println(err)
	fmt.Println(errors.Is(err, &core.Error{Kind: core.ErrUnknownStrategy}))
	// Output:
	// query 90, key 10: 40
	// no position strategy "halve" (did you mean "halved"?)
	// true
}
