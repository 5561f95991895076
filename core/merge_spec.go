package core

import (
	"errors"

	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

// MergeSpec says what to merge into what.
type MergeSpec struct {
	Method  string
	Sources []string // checkpoint folders, oldest first
	Base    string   // folder, for methods that work on differences; "": none
	Out     string   // folder to be made
	// ModelKey is the dictionary that holds the weights in sources that hold more
	// (PyTorch's), dotted; "": where trainers usually put them.
	ModelKey string
	// ConfigFrom is a folder whose configuration and tokenizer are copied; "": the
	// newest source, NoConfig: none are.
	ConfigFrom string

	Weights []float64 // one for each source, for a linear method; nil: the method's own
	Steps   []float64 // training step of each source; nil: unknown
	Params  Params
	Dtype   tensor.Dtype // of merged tensors; Invalid: as in the sources, which must agree

	Float64        bool // accumulate in float64
	AllowNonFinite bool
	Overwrite      bool // replace a checkpoint, or an unfinished one, that is in Out
	Resume         bool // go on with a killed merge of the same recipe, keep what is done if this one fails
	Volatile       bool // do not wait for the disk: as safe from kills, not from power cuts
	DryRun         bool // plan and check, write nothing
	ShardBytes     int64
	Threads        int

	// Progress is called from one goroutine at a time with bytes written.
	Progress func(done, total int64)
}

// NoConfig is a ConfigFrom for weights that no config.json describes.
const NoConfig = "none"

// MergeReport says what was merged and how.
type MergeReport struct {
	Method    string         `json:"method"`
	Sources   []string       `json:"sources"`
	Out       string         `json:"out"`
	Weights   []float64      `json:"weights,omitempty"`
	Params    Params         `json:"params,omitempty"`
	Recipe    string         `json:"recipe"`  // hash of all that the result depends on
	Tensors   int            `json:"tensors"` // merged
	Copied    []string       `json:"copied,omitempty"`
	NonFinite []TensorReport `json:"non_finite,omitempty"`
	Resumed   int            `json:"resumed,omitempty"` // tensors that an earlier run had finished
	BytesRead int64          `json:"bytes_read"`
	Bytes     int64          `json:"bytes_written"`
	DiskNeed  int64          `json:"disk_need"` // bytes, before the first is written
	DiskFree  int64          `json:"disk_free"`
	Seconds   float64        `json:"seconds"`
	Backend   string         `json:"backend,omitempty"`
	Warnings  []string       `json:"warnings,omitempty"`
	DryRun    bool           `json:"dry_run,omitempty"`
}

func (s *MergeSpec) validate(info Info) error {
	if len(s.Sources) == 0 {
		return Invalid(info.ID(), "no sources: want at least one checkpoint folder")
	}
	if s.Out == "" {
		return Invalid(info.ID(), "no output folder")
	}
	if s.Weights != nil && len(s.Weights) != len(s.Sources) {
		return Invalid(info.ID(), "%d weights: want one for each of %d sources", len(s.Weights), len(s.Sources))
	}
	if s.Weights != nil && !info.Capabilities.Weights {
		return Invalid(info.ID(), "it is not a linear method and takes no weights").WithHint("use method \"linear\"")
	}
	if s.Steps != nil && len(s.Steps) != len(s.Sources) {
		return Invalid(info.ID(), "%d steps: want one for each of %d sources", len(s.Steps), len(s.Sources))
	}
	if s.Dtype != tensor.Invalid && !s.Dtype.IsFloat() {
		return Invalid(info.ID(), "dtype %v: want float32, bfloat16, float16, float64, float8_e4m3 or float8_e5m2", s.Dtype)
	}
	return finite(info, "weights", s.Weights)
}

func finite(info Info, name string, numbers []float64) error {
	p := Parameter{Name: name, Type: Floats}
	if err := p.checkAll(numbers); err != nil {
		return Invalid(info.ID(), "%s: %s", name, err)
	}
	return nil
}

// CheckpointError gives an error of the checkpoint package its kind and hint.
func CheckpointError(err error) error {
	if err == nil {
		return nil
	}
	var typed *checkpoint.Error
	if !errors.As(err, &typed) {
		return AsError(err)
	}
	e := &Error{Kind: ErrCheckpoint, Message: err.Error(), Hint: typed.Hint, Cause: err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 1 {
		return e
	}
	bare := *typed
	bare.Hint = ""
	e.Message = bare.Error()
	return e
}
