package wire

import (
	"math"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// Generators of everything that travels. Empty lists are nil, as they arrive.

var (
	numbers  = rapid.Float64().Filter(func(f float64) bool { return !math.IsNaN(f) })
	finites  = rapid.Float64Range(-1e300, 1e300)
	counts   = rapid.IntRange(0, maxCount-1)
	texts    = rapid.String()
	optional = rapid.Ptr(numbers, true)
)

func list[T any](of *rapid.Generator[T]) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T {
		values := rapid.SliceOfN(of, 0, 5).Draw(t, "list")
		if len(values) == 0 {
			return nil
		}
		return values
	})
}

func listOf[T any](n int, of *rapid.Generator[T]) *rapid.Generator[[]T] {
	return rapid.SliceOfN(of, n, n)
}

var values = rapid.Custom(func(t *rapid.T) any {
	switch rapid.IntRange(0, 5).Draw(t, "type") {
	case 0:
		return rapid.Int64().Draw(t, "int")
	case 1:
		return numbers.Draw(t, "float")
	case 2:
		return rapid.Bool().Draw(t, "bool")
	case 3:
		return texts.Draw(t, "string")
	case 4:
		return rapid.SliceOfN(numbers, 0, 5).Draw(t, "floats")
	}
	return nil
})

var paramSets = rapid.Custom(func(t *rapid.T) core.Params {
	params := core.Params(rapid.MapOfN(texts, values, 0, 5).Draw(t, "params"))
	if len(params) == 0 {
		return nil
	}
	return params
})

var rules = rapid.Custom(func(t *rapid.T) core.Rule {
	return core.Rule{
		Modulo: rapid.Int64Min(0).Draw(t, "modulo"), Group: rapid.Int64Min(0).Draw(t, "group"), Scale: finites.Draw(t, "scale"),
		Offset: finites.Draw(t, "offset"), Limit: finites.Draw(t, "limit"),
	}
})

var bands = rapid.Custom(func(t *rapid.T) core.Band {
	return core.Band{
		Chunk: rapid.Int64().Draw(t, "chunk"), Low: rapid.Int64().Draw(t, "low"), High: rapid.Int64().Draw(t, "high"),
		Query: rules.Draw(t, "query"), Key: rules.Draw(t, "key"),
	}
})

var plans = rapid.Custom(func(t *rapid.T) *core.PositionPlan {
	return &core.PositionPlan{
		Strategy: texts.Draw(t, "strategy"), InvFreq: list(numbers).Draw(t, "inv_freq"), AppliedInvFreq: list(numbers).Draw(t, "applied"),
		AttentionScale: numbers.Draw(t, "scale"), Interleaved: rapid.Bool().Draw(t, "interleaved"), Bands: list(bands).Draw(t, "bands"), Twice: rapid.Int64().Draw(t, "twice"),
	}
})

// plainPlan passes the validation of any request with a head_dim of at least 2.
func plainPlan(t *rapid.T) *core.PositionPlan {
	split := rapid.Int64().Filter(func(n int64) bool { return n != math.MinInt64 && n != math.MaxInt64 }).Draw(t, "split")
	f := []float64{finites.Draw(t, "frequency")}
	return &core.PositionPlan{
		Strategy: texts.Draw(t, "strategy"), InvFreq: f, AppliedInvFreq: f, AttentionScale: 1,
		Bands: []core.Band{
			{Chunk: 1, Low: math.MinInt64, High: split, Query: rules.Draw(t, "query"), Key: rules.Draw(t, "key")},
			{Chunk: 1, Low: split, High: math.MaxInt64, Query: rules.Draw(t, "query"), Key: rules.Draw(t, "key")},
		},
	}
}

var heads = rapid.Custom(func(t *rapid.T) core.HeadReport {
	return core.HeadReport{
		Sequence: counts.Draw(t, "sequence"), Head: counts.Draw(t, "head"), Pattern: texts.Draw(t, "pattern"),
		Kept: rapid.Int64().Draw(t, "kept"), Blocks: rapid.Int64().Draw(t, "blocks"), Density: numbers.Draw(t, "density"),
		Coverage: optional.Draw(t, "coverage"), CoverageLower: optional.Draw(t, "lower"), ProbeRows: counts.Draw(t, "rows"),
		JSDistance: optional.Draw(t, "js"), BlocksAdded: rapid.Int64().Draw(t, "added"),
		Bound: texts.Draw(t, "bound"), Delta: numbers.Draw(t, "delta"), CoverageLowerAll: optional.Draw(t, "lower_all"),
	}
})

var precisions = rapid.SampledFrom([]core.Precision{"", core.PrecisionHighest, core.PrecisionHigh})

var reports = rapid.Custom(func(t *rapid.T) core.Report {
	return core.Report{
		Strategy: texts.Draw(t, "strategy"), Position: texts.Draw(t, "position"), Backend: texts.Draw(t, "backend"),
		Threads: counts.Draw(t, "threads"), Density: numbers.Draw(t, "density"), Coverage: optional.Draw(t, "coverage"),
		Times: core.Times{Select: numbers.Draw(t, "select"), Attend: numbers.Draw(t, "attend"), Measure: numbers.Draw(t, "measure")},
		Heads: list(heads).Draw(t, "heads"), Notes: list(texts).Draw(t, "notes"), Precision: precisions.Draw(t, "precision"),
	}
})

var infos = rapid.Custom(func(t *rapid.T) core.Info {
	return core.Info{
		Name: rapid.StringN(1, 20, -1).Draw(t, "name"), Kind: rapid.SampledFrom([]core.StrategyKind{core.Attention, core.Position, core.Merge}).Draw(t, "kind"),
		Summary: texts.Draw(t, "summary"), Paper: texts.Draw(t, "paper"), License: texts.Draw(t, "license"), Version: texts.Draw(t, "version"),
		Parameters: list(parameters).Draw(t, "parameters"), Capabilities: capabilities.Draw(t, "capabilities"), Notes: list(texts).Draw(t, "notes"),
	}
})

var parameters = rapid.Custom(func(t *rapid.T) core.Parameter {
	return core.Parameter{
		Name: texts.Draw(t, "name"), Type: rapid.SampledFrom([]core.ParameterType{core.Int, core.Float, core.Bool, core.String, core.Floats}).Draw(t, "type"),
		Default: values.Draw(t, "default"), Doc: texts.Draw(t, "doc"), Unit: texts.Draw(t, "unit"), Choices: list(texts).Draw(t, "choices"),
		Min: optional.Draw(t, "min"), Max: optional.Draw(t, "max"), OpenMin: rapid.Bool().Draw(t, "open_min"),
		OpenMax: rapid.Bool().Draw(t, "open_max"), PerHead: rapid.Bool().Draw(t, "per_head"), Optional: rapid.Bool().Draw(t, "optional"),
	}
})

var capabilities = rapid.Custom(func(t *rapid.T) core.Capabilities {
	flag := func(name string) bool { return rapid.Bool().Draw(t, name) }
	return core.Capabilities{
		Dtypes: list(texts).Draw(t, "dtypes"), Devices: list(texts).Draw(t, "devices"), MaxHeadDim: counts.Draw(t, "max_head_dim"),
		GQA: flag("gqa"), Varlen: flag("varlen"), Chunked: flag("chunked"), Deterministic: flag("deterministic"),
		Attends: flag("attends"), Weights: flag("weights"), ChunkRule: texts.Draw(t, "chunk_rule"),
	}
})

var floatDtypes = []tensor.Dtype{tensor.Float32, tensor.BFloat16, tensor.Float16, tensor.Float64}

// attentionRequests are valid, so that they pass the checks of decoding.
var attentionRequests = rapid.Custom(func(t *rapid.T) *core.AttentionRequest {
	small := func(name string) int64 { return rapid.Int64Range(1, 4).Draw(t, name) }
	batch, kvHeads, group, qLen, headDim := small("batch"), small("kv_heads"), small("group"), small("q_len"), 2*small("head_dim")
	kLen := qLen + small("more keys")
	dtype := rapid.SampledFrom(floatDtypes).Draw(t, "dtype")
	make := func(dtype tensor.Dtype, shape ...int64) *tensor.Tensor {
		x, err := tensor.Make(dtype, shape...)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	req := &core.AttentionRequest{
		Query: make(dtype, batch, kvHeads*group, qLen, headDim), Key: make(dtype, batch, kvHeads, kLen, headDim),
		Value: make(dtype, batch, kvHeads, kLen, headDim), Output: make(dtype, batch, kvHeads*group, qLen, headDim),
		Scale: rapid.Float64Range(1e-9, 1e9).Draw(t, "scale"), Causal: rapid.Bool().Draw(t, "causal"),
		Window: rapid.Int64Min(0).Draw(t, "window"), Softcap: rapid.Float64Range(0, 1e9).Draw(t, "softcap"),
		Params: paramSets.Draw(t, "params"), Layer: rapid.IntRange(-1, maxCount-1).Draw(t, "layer"), Threads: counts.Draw(t, "threads"),
		Seed: rapid.Int64().Draw(t, "seed"), WantMask: rapid.Bool().Draw(t, "want_mask"), ProbeRows: counts.Draw(t, "probe_rows"),
		ForceDense: rapid.Bool().Draw(t, "force_dense"), Precision: precisions.Draw(t, "precision"),
		Bound: rapid.SampledFrom([]string{"", core.BoundNormal, core.BoundProven}).Draw(t, "bound"),
	}
	if req.Bound == core.BoundProven {
		req.Delta = rapid.Float64Range(0, 0.99).Draw(t, "delta")
	}
	if rapid.Bool().Draw(t, "lse") {
		req.LSE = make(tensor.Float32, batch, kvHeads*group, qLen)
	}
	if rapid.Bool().Draw(t, "sinks") {
		req.Sinks = listOf(int(kvHeads*group), rapid.Float32Range(-1e9, 1e9)).Draw(t, "sink")
	}
	if rapid.Bool().Draw(t, "position") {
		req.Position = plainPlan(t)
	}
	if rapid.Bool().Draw(t, "rows") {
		req.QueryOffset = listOf(int(batch), rapid.Int64Range(0, 1<<30)).Draw(t, "offset")
		req.KeyStart = listOf(int(batch), rapid.Int64Range(0, 1)).Draw(t, "start")
		req.KeyEnd = listOf(int(batch), rapid.Int64Range(1, kLen)).Draw(t, "end")
	}
	if rapid.Bool().Draw(t, "mask") {
		size := 16 * rapid.IntRange(1, 64).Draw(t, "block_size")
		req.Mask = core.DenseMask(size, int(kvHeads*group), req.BlockExtents(size), req.Causal)
	}
	return req
})

func extents(writable bool) *rapid.Generator[tensor.Extent] {
	return rapid.Custom(func(t *rapid.T) tensor.Extent {
		return tensor.Extent{Offset: rapid.Int64Range(0, 1<<40).Draw(t, "offset"), Writable: writable}
	})
}

// rowByRow cuts an array along its first axis.
func rowByRow(t *rapid.T, dtype tensor.Dtype, shape []int64) *tensor.Cut {
	c := &tensor.Cut{Item: dtype.Size(), Shape: shape}
	for i := range shape[0] {
		at := make([]int64, len(shape))
		at[0] = i
		p := tensor.Part{Offset: rapid.Int64Range(0, 1<<40).Draw(t, "part"), At: at, Shape: append([]int64{1}, shape[1:]...)}
		c.Parts = append(c.Parts, p)
	}
	return c
}

var mergeRequests = rapid.Custom(func(t *rapid.T) *core.MergeRequest {
	sources, outputs := rapid.IntRange(1, 3).Draw(t, "sources"), rapid.IntRange(1, 3).Draw(t, "outputs")
	req := &core.MergeRequest{
		Sources: sources, Float64: rapid.Bool().Draw(t, "float64"), AllowNonFinite: rapid.Bool().Draw(t, "non_finite"),
		Uncached: rapid.Bool().Draw(t, "uncached"), Threads: counts.Draw(t, "threads"), Params: paramSets.Draw(t, "params"),
	}
	if rapid.Bool().Draw(t, "weights") {
		req.Weights = listOf(outputs, listOf(sources, finites)).Draw(t, "weights")
	}
	if rapid.Bool().Draw(t, "steps") {
		req.Steps = listOf(sources, finites).Draw(t, "steps")
	}
	for range rapid.IntRange(1, 3).Draw(t, "tensors") {
		shape := list(rapid.Int64Range(0, 5)).Draw(t, "shape")
		operand := func(writable bool) core.MergeOperand {
			o := core.MergeOperand{Dtype: rapid.SampledFrom(floatDtypes).Draw(t, "dtype"), Extent: extents(writable).Draw(t, "extent")}
			o.Extent.Size = o.Dtype.Size()
			for _, d := range shape {
				o.Extent.Size *= d
			}
			if !writable && o.Extent.Size > 0 && len(shape) > 0 && rapid.Bool().Draw(t, "cut") {
				o.Extent.Offset, o.Extent.Cut = 0, rowByRow(t, o.Dtype, shape)
			}
			return o
		}
		x := core.MergeTensor{Name: texts.Draw(t, "name"), Shape: shape}
		for range sources {
			x.Inputs = append(x.Inputs, operand(false))
		}
		for range outputs {
			x.Outputs = append(x.Outputs, operand(true))
		}
		if rapid.Bool().Draw(t, "base") {
			base := operand(false)
			x.Base = &base
		}
		req.Tensors = append(req.Tensors, x)
	}
	return req
})
