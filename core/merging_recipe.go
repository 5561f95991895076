package core

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/trivium-ml/trivium/core/checkpoint"
)

// sourceFile is a file that the result depends on, known by its size and time.
type sourceFile struct {
	Path     string
	Size     int64
	Modified int64
}

// recipe identifies all that the result depends on, so that a killed merge is
// only taken up by the same one.
func (m *merging) recipe(o *output) (string, error) {
	files, err := m.sourceFiles()
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(struct {
		Method, Version string
		Params          Params
		Weights, Steps  []float64
		Dtype           string
		Float64         bool
		AllowNonFinite  bool
		ShardBytes      int64
		ModelKey        string
		Sources         int // the rest is a base
		Files           []sourceFile
	}{o.method, m.strategy.Info().Version, o.params, o.weights, m.spec.Steps, o.dtype.String(), m.spec.Float64, m.spec.AllowNonFinite,
		m.spec.ShardBytes, m.spec.ModelKey, len(m.spec.Sources), files})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// sourceFiles lists the weights and configurations of the sources, and then what is
// copied beside the merged weights.
func (m *merging) sourceFiles() ([]sourceFile, error) {
	var paths []string
	for _, folder := range m.folders {
		for _, f := range folder.Files {
			paths = append(paths, f.Path)
		}
		if hasConfig(folder.Dir) {
			paths = append(paths, filepath.Join(folder.Dir, "config.json"))
		}
	}
	if from := m.configFrom(); from != NoConfig {
		side, err := checkpoint.SideFiles(from)
		if err != nil {
			return nil, err
		}
		for _, name := range side {
			paths = append(paths, filepath.Join(from, name))
		}
	}
	files := make([]sourceFile, len(paths))
	for i, path := range paths {
		stat, err := os.Stat(path)
		if err != nil {
			return nil, Errorf(ErrCheckpoint, "%w", err)
		}
		if path, err = filepath.Abs(path); err != nil {
			return nil, Errorf(ErrCheckpoint, "%w", err)
		}
		files[i] = sourceFile{path, stat.Size(), stat.ModTime().UnixNano()}
	}
	return files, nil
}
