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

// Folder is an open checkpoint: one file, or shards and their index, or a
// distributed checkpoint.
type Folder struct {
	Dir         string
	Files       []*File   // by name
	Tensors     []*Tensor // by file, then offset; of a distributed checkpoint as its metadata has them
	Unlisted    []string  // safetensors files here that the checkpoint does not use
	Ignored     []string  // what a distributed checkpoint holds besides the model's weights, in words
	Sharded     bool      // there is an index
	Torch       bool      // its files are torch.save's
	Distributed bool      // it is torch.distributed.checkpoint's

	byName map[string]*Tensor
	key    string // of the weights among what trainers keep with them; "": the usual ones
}

// Open opens a checkpoint folder and checks every header, and the index and the
// shards against each other. Safetensors files are preferred to PyTorch's, and
// those to a distributed checkpoint. The path may also be that of one file of
// safetensors or PyTorch, whose folder is then Dir. The caller closes the folder.
func Open(dir string) (*Folder, error) { return OpenModel(dir, "") }

// OpenModel is Open for checkpoints that hold more than the weights: key says
// under which dictionary the weights are (dotted, as app.model). Safetensors
// hold weights only, and take no notice of it.
func OpenModel(dir, key string) (*Folder, error) {
	if info, err := os.Stat(dir); err == nil && info.Mode().IsRegular() {
		return openSingle(dir, key)
	}
	if !isShards(dir) {
		if at, ok := distributedIn(dir); ok {
			return openDistributed(dir, at, key)
		}
		if cut := cutShards(dir); len(cut) > 0 {
			return openCutShards(dir, cut)
		}
	}
	shards, index, err := shardsOf(dir)
	if err != nil {
		return nil, err
	}
	d := &Folder{Dir: dir, Sharded: index != nil, Torch: isTorch(shards[0]), byName: map[string]*Tensor{}, key: key}
	if err := d.open(shards, index); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func openSingle(path, key string) (*Folder, error) {
	d := &Folder{Dir: filepath.Dir(path), Torch: isTorch(path), byName: map[string]*Tensor{}, key: key}
	if err := d.openFile(path); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func isTorch(name string) bool { return filepath.Ext(name) != ".safetensors" }

func (d *Folder) openFile(path string) error {
	open := OpenFile
	if d.Torch {
		open = func(path string) (*File, error) { return OpenTorch(path, d.key) }
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
	for _, extension := range extensions {
		if other, _ := filepath.Glob(filepath.Join(dir, "*"+extension)); len(other) > 0 {
			e.Hint = "name the file itself, such as " + other[0]
		}
	}
	for _, f := range foreign {
		if found, _ := filepath.Glob(filepath.Join(dir, f.pattern)); len(found) > 0 {
			e.Reason, e.Hint, e.Err = f.is, f.convert, ErrFormat
			return e
		}
	}
	return e
}

// foreign are checkpoints that are not read, by a file that they have, with how
// to make of them one that is.
var foreign = [...]struct{ pattern, is, convert string }{
	{"__*.metadata", "is a distributed checkpoint of PyTorch whose ranks wrote metadata of their own (use_collectives=False)",
		"load it in the training script and save it again, with use_collectives=True"},
	{ranksPattern, "holds parts of a distributed checkpoint of PyTorch (.distcp) but no " + metadataName + ": the save did not end, or the copy is not whole",
		"copy it again, " + metadataName + " too, or use another checkpoint"},
	{"*_model_states.pt", deepspeed, deepspeedConvert}, {"global_step*/*_model_states.pt", deepspeed, deepspeedConvert},
	{"mp_rank_*/model_optim_rng.pt", megatron, megatronConvert}, {"iter_*/mp_rank_*/model_optim_rng.pt", megatron, megatronConvert},
	{"*/.zarray", "is a checkpoint of Megatron in zarr", megatronConvert},
	{"model*.npz", "holds arrays of numpy", "load them in Python and save them with safetensors.numpy.save_file"},
	{"tf_model.h5", "holds weights of TensorFlow", "load it with from_pretrained(..., from_tf=True) and save_pretrained"},
	{"flax_model.msgpack", "holds weights of Flax", "load it with from_pretrained(..., from_flax=True) and save_pretrained"},
}

const (
	deepspeed        = "is a checkpoint of DeepSpeed, which cuts its tensors over ranks in its own way"
	deepspeedConvert = "put it together: python zero_to_fp32.py DIR OUT --safe_serialization (the script lies beside the checkpoint), and merge OUT"
	megatron         = "is a sharded checkpoint of Megatron, whose ranks hold pieces that only its model code can put together"
	megatronConvert  = "export it to Hugging Face's layout with Megatron-LM's tools/checkpoint/convert.py or Megatron Bridge, and merge that"
)

// isShards says whether there are whole safetensors or PyTorch files.
func isShards(dir string) bool {
	return hasEither(dir, singleName, indexName) || hasEither(dir, torchSingleName, torchIndexName)
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
