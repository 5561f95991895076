package checkpoint

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"

	"github.com/trivium-ml/trivium/core/tensor"
)

// shardingKey is in the metadata of a safetensors file that a rank wrote with
// HuggingFaceStorageWriter(save_distributed=True): where in each tensor its box begins.
const shardingKey = "DCP_SHARDING_INFO"

// cutShards lists the files of such a checkpoint; it has no index.
func cutShards(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, cutPattern))
	slices.Sort(paths)
	return paths
}

// openCutShards opens a checkpoint whose ranks have each written a box of the
// tensors. A tensor's size is as far as its boxes reach, which is all there is to
// know of it; that they tile it is checked.
func openCutShards(dir string, paths []string) (*Folder, error) {
	d := &Folder{Dir: dir, Distributed: true, byName: map[string]*Tensor{}}
	if err := d.openCut(paths); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Folder) openCut(paths []string) error {
	cuts := map[string]*tensor.Cut{}
	for _, path := range paths {
		f, err := OpenFile(path)
		if err != nil {
			return err
		}
		d.Files = append(d.Files, f)
		if err := d.addBoxes(f, cuts); err != nil {
			return inFile(err, path)
		}
	}
	for _, t := range d.Tensors {
		cut := cuts[t.Name]
		size, ok := byteSize(t.Dtype, t.Shape)
		if t.Size = size; !ok || cut.Item == 0 {
			return inFile(malformed(t.Name, "shape %v of %s has no size in whole bytes below 2^61, or its elements none", t.Shape, t.Dtype), t.File.Path)
		}
		cut.Shape = t.Shape
		if err := t.join(cut); err != nil {
			return inFile(err, t.File.Path)
		}
	}
	return nil
}

// addBoxes takes up what a rank's file has of each tensor.
func (d *Folder) addBoxes(f *File, cuts map[string]*tensor.Cut) error {
	var boxes map[string]struct {
		At []int64 `json:"saved_offsets"`
	}
	if err := json.Unmarshal([]byte(f.Metadata[shardingKey]), &boxes); err != nil {
		return malformed("", "%s of its metadata: %v", shardingKey, err)
	}
	for _, box := range f.Tensors {
		at := boxes[box.Name].At
		if len(at) != len(box.Shape) {
			return malformed(box.Name, "%s says %v of where it begins: want %d numbers", shardingKey, at, len(box.Shape))
		}
		t, seen := d.byName[box.Name]
		if !seen {
			t = &Tensor{Name: box.Name, Dtype: box.Dtype, Shape: make([]int64, len(at)), File: f, Offset: box.Offset}
			d.byName[t.Name], cuts[t.Name] = t, &tensor.Cut{Item: int64(box.Dtype.Bits() / 8)}
			d.Tensors = append(d.Tensors, t)
		}
		if t.Dtype != box.Dtype || len(t.Shape) != len(at) {
			return malformed(box.Name, "is %v of %s here, and another type or another number of axes in %s", box.Shape, box.Dtype, filepath.Base(t.File.Path))
		}
		for axis, n := range box.Shape {
			if at[axis] < 0 || at[axis] > 1<<61 {
				return malformed(box.Name, "begins at %v", at)
			}
			t.Shape[axis] = max(t.Shape[axis], at[axis]+n)
		}
		if !slices.Contains(box.Shape, 0) {
			cut := cuts[t.Name]
			if len(cut.Parts) == 0 {
				t.File, t.Offset = f, box.Offset
			}
			cut.Parts = append(cut.Parts, tensor.Part{File: f.f, Offset: box.Offset, At: at, Shape: box.Shape})
		}
	}
	return nil
}
