package checkpoint

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/trivium-ml/trivium/core/tensor"
)

// distributedIn finds the folder of a distributed checkpoint: dir, or where
// accelerate puts the model of a checkpoint in dir.
func distributedIn(dir string) (string, bool) {
	for _, at := range [...]string{dir, filepath.Join(dir, nestedName)} {
		if exists(filepath.Join(at, metadataName)) {
			return at, true
		}
	}
	return "", false
}

// openDistributed opens a checkpoint of torch.distributed.checkpoint that lies at a
// folder in dir. A tensor that its ranks have cut is one tensor here, read from the parts.
func openDistributed(dir, at, key string) (*Folder, error) {
	path := filepath.Join(at, metadataName)
	items, err := readDCP(path)
	if err != nil {
		return nil, err
	}
	d := &distributed{Folder: &Folder{Dir: dir, Distributed: true, byName: map[string]*Tensor{}}, at: at, files: map[string]*File{}}
	if err := d.open(path, items, key); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d.Folder, nil
}

// Range is a piece of a file in a checkpoint's folder.
type Range struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
}

// Chunks says where the weights of a distributed checkpoint lie, by its metadata alone.
func Chunks(dir, key string) ([]Range, error) {
	at, ok := distributedIn(dir)
	if !ok {
		return nil, notFound(dir)
	}
	path := filepath.Join(at, metadataName)
	items, err := readDCP(path)
	if err != nil {
		return nil, err
	}
	weights, _, err := weightsOf(items, key)
	if err != nil {
		return nil, inFile(err, path)
	}
	nested, err := filepath.Rel(dir, at)
	if err != nil {
		return nil, system("read", at, err)
	}
	var chunks []Range
	for _, item := range weights {
		for _, c := range item.chunks {
			if c.where != nil {
				chunks = append(chunks, Range{filepath.Join(nested, c.where.file), c.where.offset, c.where.length})
			}
		}
	}
	return chunks, nil
}

// distributed is such a folder while it is opened.
type distributed struct {
	*Folder
	at    string
	files map[string]*File
}

func (d *distributed) open(path string, items []dcpItem, key string) error {
	// The metadata is one of the files that the result depends on.
	if _, err := d.file(metadataName); err != nil {
		return err
	}
	weights, ignored, err := weightsOf(items, key)
	if err != nil {
		return inFile(err, path)
	}
	d.Ignored = ignored
	for i := range weights {
		t, err := d.assemble(&weights[i])
		if err != nil {
			return inFile(inTensor(err, weights[i].name), path)
		}
		d.byName[t.Name] = t
		d.Tensors = append(d.Tensors, t)
	}
	return nil
}

// file opens a file of the checkpoint once.
func (d *distributed) file(name string) (*File, error) {
	if f, ok := d.files[name]; ok {
		return f, nil
	}
	f, err := openRegular(filepath.Join(d.at, name))
	if err != nil {
		return nil, err
	}
	d.files[name] = f
	d.Files = append(d.Files, f)
	return f, nil
}

// assemble finds the parts of a tensor.
func (d *distributed) assemble(item *dcpItem) (*Tensor, error) {
	dtype, ok := torchDtype(item.dtype)
	if !ok {
		return nil, malformed(item.name, "is of type %s, which is not read", item.dtype)
	}
	size, ok := byteSize(dtype, item.shape)
	if !ok {
		return nil, malformed(item.name, "shape %v of %s has no size in whole bytes below 2^61", item.shape, dtype)
	}
	t := &Tensor{Name: item.name, Dtype: dtype, Shape: item.shape, Size: size, File: d.Files[0]}
	cut := &tensor.Cut{Item: int64(dtype.Bits() / 8), Shape: item.shape}
	for _, c := range item.chunks {
		if err := c.inside(item.shape); err != nil {
			return nil, malformed(item.name, "%v", err)
		}
		if slices.Contains(c.shape, 0) {
			continue // of a rank that had no rows
		}
		at, err := d.chunk(item.name, dtype, &c)
		if err != nil {
			return nil, err
		}
		if len(cut.Parts) == 0 {
			t.File, t.Offset = at.File, at.Offset
		}
		cut.Parts = append(cut.Parts, tensor.Part{File: at.File.f, Offset: at.Offset, At: c.at, Shape: c.shape})
	}
	return t, t.join(cut)
}

// join makes one tensor of parts, which must tile it.
func (t *Tensor) join(cut *tensor.Cut) error {
	if t.Size == 0 {
		return nil
	}
	if err := checkTiling(t.Shape, cut.Parts); err != nil {
		return malformed(t.Name, "%v", err)
	}
	if len(cut.Parts) > 1 || t.Offset%cut.Item != 0 {
		t.Offset, t.cut = 0, cut
	}
	return nil
}

func (c *dcpChunk) inside(shape []int64) error {
	for axis, n := range shape {
		if at, size := c.at[axis], c.shape[axis]; at < 0 || size < 0 || at > n || size > n-at {
			return fmt.Errorf("the chunk at %v of %v lies outside of %v", c.at, c.shape, shape)
		}
	}
	return nil
}

// chunk opens the archive of a chunk, which must be what the metadata says.
func (d *distributed) chunk(name string, dtype Dtype, c *dcpChunk) (*Tensor, error) {
	if c.where == nil {
		return nil, &Error{Op: "read", Tensor: name, Err: ErrMissing, Reason: fmt.Sprintf("the metadata does not say where its chunk at %v lies", c.at)}
	}
	f, err := d.file(c.where.file)
	if err != nil {
		return nil, inTensor(err, name)
	}
	t, err := f.savedTensor(name, c.where)
	switch {
	case err != nil:
		return nil, inFile(inTensor(err, name), f.Path)
	case t.Dtype != dtype || !slices.Equal(t.Shape, c.shape):
		return nil, inFile(malformed(name, "its chunk at %v is %v of %s in the file and %v of %s in the metadata", c.at, t.Shape, t.Dtype, c.shape, dtype), f.Path)
	}
	return t, nil
}

// savedTensor is the tensor that torch.save has written to a range of the file.
func (f *File) savedTensor(name string, at *dcpPlace) (*Tensor, error) {
	if at.transformed != "" {
		e := malformed(name, "was changed as it was written, by %s: only plain chunks are read", at.transformed)
		e.Hint = "load it in the training script and save it without extensions"
		return nil, e
	}
	if at.offset < 0 || at.length < 0 || at.offset > f.Size || at.length > f.Size-at.offset {
		return nil, &Error{Op: "read", Tensor: name, Err: ErrTruncated, Hint: "copy or download the file again",
			Reason: fmt.Sprintf("truncated: a chunk has bytes %d to %d, the file has %d", at.offset, at.offset+at.length, f.Size)}
	}
	a, err := f.archive(at.offset, at.length)
	if err != nil {
		return nil, err
	}
	root, err := a.root()
	if err != nil {
		return nil, err
	}
	return a.rebuild(name, root)
}
