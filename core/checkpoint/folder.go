package checkpoint

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Names that Hugging Face gives to a checkpoint's entry points.
const (
	singleName = "model.safetensors"
	indexName  = "model.safetensors.index.json"
)

// Folder is an open checkpoint: one file, or shards and their index.
type Folder struct {
	Dir      string
	Files    []*File   // by name
	Tensors  []*Tensor // by file, then offset
	Unlisted []string  // safetensors files here that the checkpoint does not use
	Sharded  bool      // there is an index
	Torch    bool      // its files are torch.save's

	byName map[string]*Tensor
}

// Open opens a checkpoint folder and checks every header, and the index and the
// shards against each other. Safetensors files are preferred to PyTorch's. The
// path may also be that of one file of either kind, whose folder is then Dir.
// The caller closes the folder.
func Open(dir string) (*Folder, error) {
	if info, err := os.Stat(dir); err == nil && info.Mode().IsRegular() {
		return openSingle(dir)
	}
	shards, index, err := shardsOf(dir)
	if err != nil {
		return nil, err
	}
	d := &Folder{Dir: dir, Sharded: index != nil, Torch: isTorch(shards[0]), byName: map[string]*Tensor{}}
	if err := d.open(shards, index); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func openSingle(path string) (*Folder, error) {
	d := &Folder{Dir: filepath.Dir(path), Torch: isTorch(path), byName: map[string]*Tensor{}}
	if err := d.openFile(path); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func isTorch(name string) bool { return filepath.Ext(name) != ".safetensors" }

func (d *Folder) openFile(path string) error {
	open := OpenFile
	if d.Torch {
		open = OpenTorch
	}
	f, err := open(path)
	if err != nil {
		return err
	}
	d.Files = append(d.Files, f)
	return d.add(f)
}

func (d *Folder) open(shards []string, index *index) error {
	for _, name := range shards {
		if err := d.openFile(filepath.Join(d.Dir, name)); err != nil {
			return err
		}
	}
	if index != nil {
		// A writer that replaces the checkpoint removes the index before it touches a
		// shard, so while the index is the same the shards are those it names.
		if err := index.unchanged(); err != nil {
			return err
		}
		if err := d.checkIndex(index.weights); err != nil {
			return err
		}
	}
	var err error
	d.Unlisted, err = unlisted(d.Dir, shards)
	return err
}

// shardsOf names the files of the checkpoint; the index is nil for a single file.
func shardsOf(dir string) ([]string, *index, error) {
	singleName, indexName := singleName, indexName
	if !hasEither(dir, singleName, indexName) && hasEither(dir, torchSingleName, torchIndexName) {
		singleName, indexName = torchSingleName, torchIndexName
	}
	single, sharded := exists(filepath.Join(dir, singleName)), exists(filepath.Join(dir, indexName))
	switch {
	case !single && !sharded:
		return nil, nil, notFound(dir)
	case !sharded:
		return []string{singleName}, nil, nil
	}
	index, err := readIndex(filepath.Join(dir, indexName))
	if err != nil {
		return nil, nil, err
	}
	shards := slices.Compact(slices.Sorted(maps.Values(index.weights)))
	if single && !slices.Contains(shards, singleName) {
		return nil, nil, &Error{Op: "read", File: dir, Err: ErrFormat,
			Reason: "holds both " + singleName + " and an index that does not name it",
			Hint:   "remove the one that is stale"}
	}
	return shards, index, nil
}

func notFound(dir string) error {
	e := &Error{Op: "read", File: dir, Reason: "holds neither " + singleName + " nor " + indexName, Err: os.ErrNotExist}
	if _, err := os.Stat(dir); err != nil {
		return system("read", dir, err)
	}
	for _, pattern := range [...]string{"*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt"} {
		if other, _ := filepath.Glob(filepath.Join(dir, pattern)); len(other) > 0 {
			e.Hint = "name the file itself, such as " + other[0]
		}
	}
	if shards, _ := filepath.Glob(filepath.Join(dir, "*.distcp")); len(shards) > 0 {
		e.Reason = "is a distributed checkpoint of PyTorch (.distcp), whose tensors are cut over files"
		e.Hint = "put it together first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch " + dir + " model.pt, and merge model.pt"
	}
	return e
}

func hasEither(dir, single, index string) bool {
	return exists(filepath.Join(dir, single)) || exists(filepath.Join(dir, index))
}

func (d *Folder) add(f *File) error {
	for _, t := range f.Tensors {
		if other, dup := d.byName[t.Name]; dup {
			return &Error{Op: "read", File: f.Path, Tensor: t.Name, Err: ErrFormat,
				Reason: "also in " + filepath.Base(other.File.Path)}
		}
		d.byName[t.Name] = t
		d.Tensors = append(d.Tensors, t)
	}
	return nil
}

// checkIndex wants the index and the shards to say the same.
func (d *Folder) checkIndex(weights map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		path := filepath.Join(d.Dir, weights[name])
		if t, ok := d.byName[name]; !ok || t.File.Path != path {
			return &Error{Op: "read", File: path, Tensor: name, Err: ErrMissing,
				Reason: "in the index but not in the file"}
		}
	}
	for _, t := range d.Tensors {
		if _, ok := weights[t.Name]; !ok {
			return &Error{Op: "read", File: t.File.Path, Tensor: t.Name, Err: ErrExtra,
				Reason: "in the file but not in the index"}
		}
	}
	return nil
}

func unlisted(dir string, shards []string) ([]string, error) {
	items, err := os.ReadDir(dir)
	if err != nil {
		return nil, system("read", dir, err)
	}
	var out []string
	for _, item := range items {
		if name := item.Name(); strings.HasSuffix(name, ".safetensors") && !slices.Contains(shards, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Tensor finds a tensor by name.
func (d *Folder) Tensor(name string) (*Tensor, bool) {
	t, ok := d.byName[name]
	return t, ok
}

// Size is the sum of the tensors' bytes.
func (d *Folder) Size() int64 {
	total := int64(0)
	for _, t := range d.Tensors {
		total += t.Size
	}
	return total
}

// Close closes every file.
func (d *Folder) Close() error {
	var errs []error
	for _, f := range d.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
