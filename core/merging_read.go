package core

import (
	"fmt"
	"slices"

	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

// read opens the sources and pairs their tensors.
func (m *merging) read() error {
	dirs := slices.Clone(m.spec.Sources)
	if m.spec.Base != "" {
		dirs = append(dirs, m.spec.Base)
	}
	for _, dir := range dirs {
		folder, err := checkpoint.OpenModel(dir, m.spec.ModelKey)
		if err != nil {
			return err
		}
		m.folders = append(m.folders, folder)
	}
	var err error
	if m.pairing, err = checkpoint.Pair(m.folders); err != nil {
		return err
	}
	m.rows = make(map[string]checkpoint.Row, len(m.pairing.Rows))
	for _, row := range m.pairing.Rows {
		m.rows[row.Name] = row
	}
	m.warn()
	return m.checkDtypes()
}

// warn names what another tool would pass over in silence.
func (m *merging) warn() {
	for _, folder := range m.folders {
		for _, name := range folder.Unlisted {
			m.warnings = append(m.warnings, fmt.Sprintf("%s: %s is not part of the checkpoint", folder.Dir, name))
		}
		for _, what := range folder.Ignored {
			m.warnings = append(m.warnings, fmt.Sprintf("%s: %s", folder.Dir, what))
		}
	}
	for _, tie := range m.pairing.Ties {
		m.warnings = append(m.warnings, fmt.Sprintf("%s is tied to %s: only %s is written", tie.Name, tie.Of, tie.Of))
	}
	var dirs []string
	for _, folder := range m.folders[:len(m.spec.Sources)] {
		if folder.Distributed && !hasConfig(folder.Dir) {
			continue // as trainers write them
		}
		if !slices.Contains(dirs, folder.Dir) { // one folder may hold several files
			dirs = append(dirs, folder.Dir)
		}
	}
	if len(dirs) == 0 {
		return
	}
	differences, err := checkpoint.CompareConfigs(dirs)
	if err != nil {
		m.warnings = append(m.warnings, "configs not compared: "+err.Error())
	}
	for _, d := range differences {
		if !d.Benign {
			m.warnings = append(m.warnings, fmt.Sprintf("config.json: %s differs: %s; the newest is written", d.Key, d.Values))
		}
	}
}

// checkDtypes wants numbers that can be merged, and one dtype for each name
// unless the caller has said what to write.
func (m *merging) checkDtypes() error {
	for _, row := range m.pairing.Rows {
		for _, t := range row.Tensors {
			if _, ok := t.Dtype.Numeric(); !ok {
				return Errorf(ErrCheckpoint, "%s: tensor %q is %s, which cannot be merged", t.File.Path, t.Name, t.Dtype).
					WithHint("merge the checkpoint before it is quantised")
			}
		}
	}
	said := m.anyDtypes || !slices.ContainsFunc(m.outputs, func(o *output) bool { return o.dtype == tensor.Invalid })
	if said || len(m.pairing.Dtypes) == 0 {
		return nil
	}
	first, other := m.pairing.Dtypes[0].Tensors[0], m.pairing.Dtypes[0].Tensors[0]
	for _, t := range m.pairing.Dtypes[0].Tensors {
		if t.Dtype != first.Dtype {
			other = t
		}
	}
	return Errorf(ErrCheckpoint, "tensor %q is %s in %s and %s in %s", first.Name, first.Dtype, first.File.Path, other.Dtype, other.File.Path).
		WithHint("pass dtype= to say what the merge should have")
}
