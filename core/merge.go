package core

import (
	"context"

	"github.com/trivium-ml/trivium/core/tensor"
)

// MergeStrategy makes one checkpoint out of several. A merge is a function of
// the numbers of one tensor at a time; finding files, pairing names and
// committing the result is the engine's.
type MergeStrategy interface {
	Strategy
	// Merge reads the inputs of each tensor and writes its outputs, all of them
	// files mapped a tile at a time. It borrows the extents until it returns.
	Merge(ctx context.Context, req *MergeRequest) (*MergeResponse, error)
}

// Weigher is a linear MergeStrategy: the result is a weighted sum of the
// sources, so many candidates can share one pass over the inputs.
type Weigher interface {
	MergeStrategy
	// Weights gives a weight for each source, oldest first.
	Weights(ctx context.Context, req *WeightsRequest) ([]float64, error)
}

// Comparer is a MergeStrategy that can also say how the sources lie to each other.
type Comparer interface {
	MergeStrategy
	// Compare multiplies the copies of each tensor with each other, in float64.
	// It borrows the extents until it returns.
	Compare(ctx context.Context, req *CompareRequest) (*CompareResponse, error)
}

// CompareRequest is a batch of tensors to compare.
type CompareRequest struct {
	Sources int
	Tensors []MergeTensor // without outputs
	Threads int           // 0: all the process may use
}

// CompareResponse has, for each tensor of the request, the matrix of inner
// products of its copies: [sources, sources], row-major. It is zero for integers.
type CompareResponse struct {
	Products [][]float64
}

// WeightsRequest asks for the weights of a linear merge.
type WeightsRequest struct {
	Sources int       // how many, oldest first
	Steps   []float64 // training step of each source; nil: unknown
	Params  Params
}

// MergeRequest is a batch of tensors to merge.
type MergeRequest struct {
	Sources int // inputs of each tensor, oldest first
	Tensors []MergeTensor
	// Weights has a row of Sources weights for each output of each tensor;
	// nil: the strategy derives its own.
	Weights        [][]float64
	Steps          []float64
	Float64        bool // accumulate in float64 rather than float32
	AllowNonFinite bool // NaN and Inf are counted, not refused
	Uncached       bool // outputs need not stay in the page cache, nor push out what is there
	Threads        int  // 0: all the process may use
	Params         Params
}

// MergeTensor is one tensor: its copy in every source and where it goes.
type MergeTensor struct {
	Name    string
	Shape   []int64
	Inputs  []MergeOperand // one for each source
	Base    *MergeOperand  // for methods that work on differences; else nil
	Outputs []MergeOperand // one for each candidate
}

// MergeOperand is a dense row-major array in a file.
type MergeOperand struct {
	Dtype  tensor.Dtype
	Extent tensor.Extent
	Path   string // of the file, for messages: the extent may only know a descriptor
}

// Name is the file's path, as far as it is known.
func (o MergeOperand) Name() string {
	if o.Path != "" {
		return o.Path
	}
	return o.Extent.File.Name()
}

// MergeResponse reports on a batch.
type MergeResponse struct {
	Tensors []TensorReport
	Backend string
	Notes   []string
}

// TensorReport is what happened to one tensor.
type TensorReport struct {
	Name string `json:"name"`
	// NonFinite counts NaN and Inf in each source.
	NonFinite []int64 `json:"non_finite,omitempty"`
	// Policy is "merged", or "copied" for integers and buffers.
	Policy string `json:"policy"`
}
