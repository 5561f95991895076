package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

// served is what the plugin process of these tests serves.
func served() sdk.Config {
	return sdk.Config{Strategies: []core.Strategy{identity{}, selector{}, shifted{}, mean{}, accelerated{}}, Devices: pretended}
}

func info(kind core.StrategyKind, name string, parameters ...core.Parameter) core.Info {
	return core.Info{
		Name: name, Kind: kind, Summary: "for tests", License: "Apache-2.0", Version: "1", Parameters: parameters,
		Capabilities: core.Capabilities{GQA: true, Varlen: true, Chunked: true},
	}
}

// identity copies the query to the output, after it has done what is asked.
type identity struct{}

func (identity) Info() core.Info {
	return info(core.Attention, "identity",
		core.Parameter{Name: "behaviour", Type: core.String, Default: "", Doc: "what to do first"},
		core.Parameter{Name: "heads", Type: core.Int, Default: int64(0), Doc: "how many heads to report"},
		core.Parameter{Name: "factor", Type: core.Float, Default: 1.0, Doc: "the output is this times the query"},
	)
}

func (identity) Select(context.Context, *core.AttentionRequest) (*core.Selection, error) {
	return &core.Selection{Reason: "identity"}, nil
}

func (identity) Attend(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	switch req.Params.Text("behaviour") {
	case "panic":
		panic("as asked")
	case "die":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "goroutine panic":
		go func() { panic("in a goroutine") }()
		time.Sleep(10 * time.Second)
	case "print":
		fmt.Println("1|1|unix|not-a-handshake|grpc")
		os.Stdout.WriteString("plain text\n")
	case "wait": // as a strategy should
		<-ctx.Done()
		return nil, ctx.Err()
	case "stubborn": // deaf to ctx, and writes to the very end
		for range 200 {
			fill(req, 3)
			time.Sleep(50 * time.Millisecond)
		}
	case "late": // deaf for a while
		for range 30 {
			fill(req, 3)
			time.Sleep(10 * time.Millisecond)
		}
	case "nothing":
		return &core.AttentionResponse{}, nil
	case "fail":
		return nil, core.Errorf(core.ErrOutOfMemory, "no room for \xff").WithHint("buy some")
	case "wrap":
		return nil, fmt.Errorf("while testing: %w", errors.New("plain"))
	}
	if err := scale(req, float32(req.Params.Float("factor"))); err != nil {
		return nil, err
	}
	report := core.Report{Strategy: "attention.identity", Backend: "test", Threads: 1, Density: 1}
	for h := range req.Params.Int("heads") {
		report.Heads = append(report.Heads, core.HeadReport{Head: h, Pattern: strings.Repeat("x", 100)})
	}
	response := &core.AttentionResponse{Report: report}
	if req.WantMask {
		response.Mask = core.DenseMask(64, req.Query.Dim(1), req.BlockExtents(64), req.Causal)
	}
	return response, nil
}

func fill(req *core.AttentionRequest, value float32) {
	if out, err := req.Output.Float32s(); err == nil {
		for i := range out {
			out[i] = value
		}
	}
}

// scale writes factor times the query to the output, both of any strides, and
// the batch row, head and query row to the lse.
func scale(req *core.AttentionRequest, factor float32) error {
	q, out := strided(req.Query), strided(req.Output)
	shape := req.Query.Shape()
	for b := range shape[0] {
		for h := range shape[1] {
			for i := range shape[2] {
				for d := range shape[3] {
					*out.at(b, h, i, d) = factor * *q.at(b, h, i, d)
				}
				if req.LSE != nil {
					*strided(req.LSE).at(b, h, i) = float32(b*10000 + h*100 + i)
				}
			}
		}
	}
	return nil
}

// selector only selects: the diagonal, or what the caller's mask says.
type selector struct{}

func (selector) Info() core.Info {
	return info(core.Attention, "selector",
		core.Parameter{Name: "block_size", Type: core.Int, Default: int64(64), Doc: "tokens", Min: core.Bound(16)},
		core.Parameter{Name: "garbage", Type: core.String, Default: "", Doc: "what is wrong with the mask"},
	)
}

func (selector) Select(_ context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	if req.Mask != nil {
		return &core.Selection{Mask: req.Mask.Broadcast(req.Query.Dim(1))}, nil
	}
	size := req.Params.Int("block_size")
	mask := core.NewBlockMask(size, req.Query.Dim(1), req.BlockExtents(size))
	for _, s := range mask.Sequences {
		for range mask.Heads {
			for i := range s.QueryBlocks {
				mask.Append([]int32{int32(s.FirstQueryBlock + i)})
			}
		}
	}
	switch req.Params.Text("garbage") {
	case "column":
		mask.Columns[len(mask.Columns)-1] = 1 << 30
	case "row":
		mask.RowPtr[1] = 1 << 40
	case "extent":
		mask.Sequences[0].KeyBlocks++
	case "size":
		mask.BlockSize = 17
	}
	return &core.Selection{Mask: mask, Heads: []core.HeadReport{{Pattern: "diagonal"}}}, nil
}

// shifted moves all positions.
type shifted struct{}

func (shifted) Info() core.Info {
	return info(core.Position, "shifted", core.Parameter{Name: "offset", Type: core.Float, Default: 0.0, Doc: "tokens"})
}

func (shifted) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	return &core.PositionPlan{
		Strategy: "position.shifted", InvFreq: req.InvFreq, AppliedInvFreq: req.InvFreq, AttentionScale: 1,
		Bands: []core.Band{{Chunk: 1, Low: -1 << 63, High: 1<<63 - 1, Query: core.Shift(req.Params.Float("offset")), Key: core.Identity()}},
	}, nil
}

// mean averages float32 tensors.
type mean struct{}

func (mean) Info() core.Info { return info(core.Merge, "mean") }

func (mean) Weights(_ context.Context, req *core.WeightsRequest) ([]float64, error) {
	weights := make([]float64, req.Sources)
	for i := range weights {
		weights[i] = 1 / float64(req.Sources)
	}
	return weights, nil
}

func (mean) Merge(_ context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	response := &core.MergeResponse{Backend: "test"}
	for _, t := range req.Tensors {
		sum := make([]float32, t.Outputs[0].Extent.Size/4)
		for _, operand := range t.Inputs {
			if err := mapped(operand, func(values []float32) {
				for i, v := range values {
					sum[i] += v / float32(req.Sources)
				}
			}); err != nil {
				return nil, err
			}
		}
		for _, operand := range t.Outputs {
			if err := mapped(operand, func(values []float32) { copy(values, sum) }); err != nil {
				return nil, err
			}
		}
		response.Tensors = append(response.Tensors, core.TensorReport{Name: t.Name, Policy: "merged"})
	}
	return response, nil
}
