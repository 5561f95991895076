package minference

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"

	"github.com/trivium-ml/trivium/core"
)

// The patterns by their names in the released files.
const (
	verticalSlash = "vertical_and_slash"
	streaming     = "stream_llm"
	blockSparse   = "block_sparse"
)

// headPattern is what one head keeps: its pattern and two numbers.
type headPattern struct {
	name          string
	first, second int
}

// layer is the patterns of the query heads of one layer.
type layer []headPattern

func (l layer) any(name string) bool {
	return slices.ContainsFunc(l, func(p headPattern) bool { return p.name == name })
}

// readLayer reads the patterns of one layer; path "" is the default of the
// released code for a model that was not searched.
func readLayer(path string, number, heads int) (layer, error) {
	patterns := make(layer, heads)
	for h := range patterns {
		patterns[h] = headPattern{name: verticalSlash, first: 1000, second: 6096}
	}
	if path == "" {
		return patterns, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, core.Invalid("attention.minference", "patterns: %s", err)
	}
	var layers []map[string][]any
	if err := json.Unmarshal(text, &layers); err != nil {
		return nil, core.Invalid("attention.minference", "patterns %s: %s: want a list with an object for each layer", path, err)
	}
	if number < 0 || number >= len(layers) {
		return nil, core.Invalid("attention.minference", "patterns %s has %d layers: this call is for layer %d", path, len(layers), number).WithHint("say which layer it is")
	}
	for h := range patterns {
		if patterns[h], err = readHead(layers[number][strconv.Itoa(h)]); err != nil {
			return nil, core.Invalid("attention.minference", "patterns %s, layer %d, head %d: %s", path, number, h, err)
		}
	}
	return patterns, nil
}

func readHead(entry []any) (headPattern, error) {
	if len(entry) < 3 {
		return headPattern{}, core.Invalid("", "%v: want [pattern, number, number, score]", entry)
	}
	name, _ := entry[0].(string)
	first, ok1 := entry[1].(float64)
	second, ok2 := entry[2].(float64)
	if !slices.Contains([]string{verticalSlash, streaming, blockSparse}, name) || !ok1 || !ok2 || first < 0 || second < 0 {
		return headPattern{}, core.Invalid("", "%v: want [pattern, number, number, score] with one of %s, %s, %s", entry, verticalSlash, streaming, blockSparse)
	}
	return headPattern{name: name, first: int(first), second: int(second)}, nil
}
