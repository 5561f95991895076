package core

import "slices"

// StrategyKind is one of the three arts.
type StrategyKind string

// The three kinds of strategy.
const (
	Attention StrategyKind = "attention"
	Position  StrategyKind = "position"
	Merge     StrategyKind = "merge"
)

// Strategy is what every strategy of any kind has.
type Strategy interface {
	// Info describes the strategy. It is constant and cheap.
	Info() Info
}

// Info describes a strategy: it drives validation, listings, command-line
// help, Python signatures and docstrings, documentation and conformance cases.
type Info struct {
	Name         string       `json:"name"` // lower-case, unique within its kind: "flexprefill"
	Kind         StrategyKind `json:"kind"`
	Summary      string       `json:"summary"` // one line
	Paper        string       `json:"paper,omitempty"`
	License      string       `json:"license"`
	Version      string       `json:"version"`
	Parameters   []Parameter  `json:"parameters"`
	Capabilities Capabilities `json:"capabilities"`
	Notes        []string     `json:"notes,omitempty"` // departures from the paper, chunk behaviour
	Plugin       string       `json:"plugin,omitempty"`
}

// Device is an accelerator that a plugin process can use, or what is missing to
// use one.
type Device struct {
	Name     string `json:"name,omitempty"` // "cuda:0"
	Model    string `json:"model,omitempty"`
	Driver   string `json:"driver,omitempty"`
	Compiler string `json:"compiler,omitempty"` // of kernels
	Cache    string `json:"cache,omitempty"`    // folder of compiled kernels
	Missing  string `json:"missing,omitempty"`  // why it cannot be used
	Hint     string `json:"hint,omitempty"`
}

// ID is the dotted identifier, such as "attention.flexprefill".
func (i Info) ID() string { return string(i.Kind) + "." + i.Name }

// Parameter finds a parameter by name.
func (i Info) Parameter(name string) (Parameter, bool) {
	at := slices.IndexFunc(i.Parameters, func(p Parameter) bool { return p.Name == name })
	if at < 0 {
		return Parameter{}, false
	}
	return i.Parameters[at], true
}

// Capabilities say what a strategy can do; they are asked, never guessed.
type Capabilities struct {
	Dtypes        []string `json:"dtypes,omitempty"`
	Devices       []string `json:"devices,omitempty"` // kinds: "cpu", "cuda"; none: the CPU
	MaxHeadDim    int      `json:"max_head_dim,omitempty"`
	GQA           bool     `json:"gqa,omitempty"`     // more query heads than kv heads
	Varlen        bool     `json:"varlen,omitempty"`  // padding and packed sequences
	Chunked       bool     `json:"chunked,omitempty"` // q_offset > 0
	Deterministic bool     `json:"deterministic,omitempty"`
	// Attends: the strategy computes the output itself. Otherwise it only
	// selects, and the shared kernel attends to what it selected.
	Attends bool `json:"attends,omitempty"`
	// Weights: a merge strategy is linear and can give its weights alone.
	Weights bool `json:"weights,omitempty"`
	// ChunkRule says how the blocks of a chunked call relate to those of a
	// one-shot call: "same" or "superset".
	ChunkRule string `json:"chunk_rule,omitempty"`
}

// ParameterType is the type of a parameter's value.
type ParameterType string

// The parameter types.
const (
	Int    ParameterType = "int"
	Float  ParameterType = "float"
	Bool   ParameterType = "bool"
	String ParameterType = "string"
	Floats ParameterType = "floats" // a list of numbers
)

// Parameter describes one parameter of a strategy.
type Parameter struct {
	Name    string        `json:"name"`
	Type    ParameterType `json:"type"`
	Default any           `json:"default"` // int64, float64, bool, string, []float64; nil: unset
	Doc     string        `json:"doc"`     // one line
	Unit    string        `json:"unit,omitempty"`
	Choices []string      `json:"choices,omitempty"` // of a string
	Min     *float64      `json:"min,omitempty"`
	Max     *float64      `json:"max,omitempty"`
	OpenMin bool          `json:"open_min,omitempty"` // Min itself is not allowed
	OpenMax bool          `json:"open_max,omitempty"`
	PerHead bool          `json:"per_head,omitempty"` // a list with one value per query head is accepted
	// Optional: the caller may unset it (nil, None) although it has a default.
	Optional bool `json:"optional,omitempty"`
}

// Bound returns a pointer to a limit, for Parameter.Min and Max.
func Bound(limit float64) *float64 { return &limit }
