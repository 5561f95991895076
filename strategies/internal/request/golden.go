package request

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/core/tensor"
)

// Golden is a case of the released FlexPrefill code, tests/golden/flexprefill.
type Golden struct {
	File          string  `json:"file"`
	Tokens        int     `json:"n"`
	Heads         int     `json:"q_heads"`
	KVHeads       int     `json:"kv_heads"`
	Dim           int     `json:"head_dim"`
	BlockSize     int     `json:"block_size"`
	Gamma         float64 `json:"gamma"`
	Tau           float64 `json:"tau"`
	MinBudget     *int64  `json:"min_budget"`
	MaxBudget     *int64  `json:"max_budget"`
	GQAInterleave bool    `json:"gqa_interleave"`
	NumBlocks     int     `json:"num_blocks"`
	QueryAware    []bool  `json:"query_aware"`
}

// GoldenFolder is the project's folder, seen from a package three levels down.
const GoldenFolder = "../../../tests/golden/flexprefill"

// Goldens reads the list of cases.
func Goldens(t *testing.T) []Golden {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(GoldenFolder, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []Golden
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// InProject says whether the case is part of the project.
func (g Golden) InProject() bool {
	_, err := os.Stat(filepath.Join(GoldenFolder, g.File))
	return err == nil
}

// Open reads the case's tensors. Two cases are part of the project; the larger
// ones lie in the folder that TRIVIUM_SHARED names, and are skipped without it.
func (g Golden) Open(t *testing.T) map[string]*tensor.Tensor {
	t.Helper()
	shared := os.Getenv("TRIVIUM_SHARED")
	if shared == "" {
		shared = "../../../../shared"
	}
	for _, folder := range []string{GoldenFolder, filepath.Join(shared, "data/golden/flexprefill")} {
		tensors, err := readSafetensors(filepath.Join(folder, g.File))
		if err == nil {
			return tensors
		}
		if !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	t.Skipf("%s is not part of the project: set TRIVIUM_SHARED to the folder with data/golden", g.File)
	return nil
}

func readSafetensors(path string) (map[string]*tensor.Tensor, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint64(file)
	var header map[string]struct {
		Dtype   string  `json:"dtype"`
		Shape   []int64 `json:"shape"`
		Offsets [2]int  `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:8+length], &header); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dtypes := map[string]tensor.Dtype{"F16": tensor.Float16, "F32": tensor.Float32, "I32": tensor.Int32}
	tensors := map[string]*tensor.Tensor{}
	for name, entry := range header {
		if name == "__metadata__" {
			continue
		}
		shape := entry.Shape
		if len(shape) == 3 {
			shape = append([]int64{1}, shape...) // [batch, heads, n, head_dim]
		}
		t, err := tensor.Make(dtypes[entry.Dtype], shape...)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, name, err)
		}
		copy(t.Bytes(), file[8+int(length)+entry.Offsets[0]:8+int(length)+entry.Offsets[1]])
		tensors[name] = t
	}
	return tensors, nil
}

// Int32s reads an int32 tensor.
func Int32s(t *tensor.Tensor) []int32 {
	return unsafe.Slice((*int32)(t.Pointer()), t.Len())
}
