package core

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

// recipeName is the file in a merged checkpoint that says how it was made.
const recipeName = "trivium_merge.json"

// describe stages the side files of the newest source, the recipe and a model
// card. None holds a time, so that a resumed merge gives the same bytes.
func (m *merging) describe(o *output) error {
	if from := m.configFrom(); from != NoConfig {
		if _, err := o.writer.CopySideFiles(from); err != nil {
			return err
		}
	}
	slices.SortFunc(o.report.NonFinite, func(a, b TensorReport) int { return cmp.Compare(a.Name, b.Name) })
	recipe, err := m.recipeFile(o)
	if err != nil {
		return err
	}
	if err := o.writer.WriteFile(recipeName, recipe); err != nil {
		return err
	}
	return o.writer.WriteFile("README.md", m.card(o))
}

func (m *merging) recipeFile(o *output) ([]byte, error) {
	dtype := "as in the sources"
	if o.dtype != tensor.Invalid {
		dtype = o.dtype.String()
	}
	text, err := json.MarshalIndent(map[string]any{
		"method": o.method, "parameters": o.params, "weights": o.weights, "sources": m.sourceNames(),
		"base": m.spec.baseName(), "dtype": dtype, "copied": o.report.Copied,
		"non_finite": o.report.NonFinite, "warnings": m.warnings, "recipe": o.report.Recipe,
		"accumulated_in": map[bool]string{false: "float32", true: "float64"}[m.spec.Float64],
	}, "", "  ")
	return append(text, '\n'), err
}

func (s *MergeSpec) baseName() string {
	if s.Base == "" {
		return ""
	}
	return filepath.Base(filepath.Clean(s.Base))
}

func (m *merging) sourceNames() []string {
	names := make([]string, len(m.spec.Sources))
	for i, dir := range m.spec.Sources {
		names[i] = filepath.Base(filepath.Clean(dir))
	}
	return names
}

// finished says whether the output is there already, made by this very recipe:
// a merge that was killed after its last step has nothing left to resume.
func (m *merging) finished(o *output) bool {
	text, err := os.ReadFile(filepath.Join(o.dir, recipeName))
	if err != nil || checkpoint.Unfinished(o.dir) {
		return false
	}
	var made struct {
		Recipe string `json:"recipe"`
	}
	if json.Unmarshal(text, &made) != nil || made.Recipe != o.report.Recipe {
		return false
	}
	o.report.Resumed = len(m.pairing.Rows)
	return true
}

// card is the model card.
func (m *merging) card(o *output) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Merged checkpoint\n\nMade by `trivium merge` with %s. `%s` has the recipe.\n\n| source | weight |\n|---|---|\n", o.method, recipeName)
	for i, s := range m.sourceNames() {
		weight := ""
		if o.weights != nil {
			weight = fmt.Sprintf("%.6g", o.weights[i])
		}
		fmt.Fprintf(&b, "| %s | %s |\n", s, weight)
	}
	return b.Bytes()
}
