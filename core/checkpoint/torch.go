package checkpoint

import (
	"archive/zip"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Names that PyTorch checkpoints have in Hugging Face folders.
const (
	torchSingleName = "pytorch_model.bin"
	torchIndexName  = "pytorch_model.bin.index.json"
	torchConvert    = "convert it: load it in Python and save_pretrained(..., safe_serialization=True)"
)

// torchDtypes are the typed storages and the dtypes of PyTorch, by their names.
func torchDtype(name string) (Dtype, bool) {
	d, ok := map[string]Dtype{
		"DoubleStorage": F64, "FloatStorage": F32, "HalfStorage": F16, "BFloat16Storage": BF16,
		"LongStorage": I64, "IntStorage": I32, "ShortStorage": I16, "CharStorage": I8, "ByteStorage": U8, "BoolStorage": BOOL,
		"float64": F64, "float32": F32, "float16": F16, "bfloat16": BF16, "float8_e4m3fn": F8_E4M3, "float8_e5m2": F8_E5M2,
		"int64": I64, "int32": I32, "int16": I16, "int8": I8, "uint8": U8, "uint16": U16, "uint32": U32, "uint64": U64, "bool": BOOL,
	}[name]
	return d, ok
}

// modelKeys are where trainers put the weights in a dictionary that holds more.
var modelKeys = [...]string{"state_dict", "model_state_dict", "model", "module"}

// OpenTorch opens a file that torch.save has written (since PyTorch 1.6: a zip
// archive) and finds its tensors, without running the pickle in it. The file
// holds a dictionary of tensors, or one that holds such a dictionary under key
// (dotted; "": as state_dict, model_state_dict, model or module). As in a
// safetensors file each tensor is a range of the file; no tensor's bytes are read.
func OpenTorch(name, key string) (*File, error) {
	file, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	if err := file.readTorch(key); err != nil {
		file.Close()
		return nil, inFile(err, name)
	}
	return file, nil
}

// archive is an open torch zip.
type archive struct {
	file        *File
	start, size int64                // of the archive in the file
	entries     map[string]*zip.File // without the leading folder
	seen        map[string]bool
}

func (f *File) readTorch(key string) error {
	a, err := f.archive(0, f.Size)
	if err != nil {
		return err
	}
	return a.read(key)
}

// archive opens the zip that is a range of the file.
func (f *File) archive(start, size int64) (*archive, error) {
	var magic [2]byte
	section := io.NewSectionReader(f.f, start, size)
	if _, err := section.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, system("read", "", err)
	}
	z, err := zip.NewReader(section, size)
	switch {
	case magic[0] == 0x80:
		e := malformed("", "a bare pickle, as PyTorch wrote before 1.6 or pickle.dump writes: it is not read")
		e.Hint = "load it with the program that wrote it and torch.save it again"
		return nil, e
	case !bytes.Equal(magic[:], []byte("PK")):
		e := malformed("", "neither a safetensors file nor a zip archive of torch.save")
		e.Hint = torchConvert
		return nil, e
	case err != nil:
		return nil, &Error{Op: "read", Reason: "the zip archive is damaged or cut short: " + err.Error(), Hint: "copy or download the file again", Err: ErrTruncated}
	}
	a := &archive{file: f, start: start, size: size, entries: map[string]*zip.File{}, seen: map[string]bool{}}
	for _, entry := range z.File {
		_, inner, _ := strings.Cut(entry.Name, "/")
		if _, dup := a.entries[inner]; dup {
			return nil, malformed("", "the archive holds %q twice", entry.Name)
		}
		a.entries[inner] = entry
	}
	return a, nil
}

// root is what was saved.
func (a *archive) root() (any, error) {
	if order, err := a.content("byteorder", 16); err == nil && string(order) != "little" {
		return nil, malformed("", "byte order %q: want little", order)
	}
	text, err := a.content("data.pkl", maxHeader)
	if err != nil {
		return nil, err
	}
	root, err := unpickle(bytes.NewReader(text))
	if err != nil {
		e := malformed("", "%v", err)
		e.Hint = torchConvert
		return nil, e
	}
	return root, nil
}

func (a *archive) read(key string) error {
	root, err := a.root()
	if err != nil {
		return err
	}
	state, err := stateOf(root, key)
	if err != nil {
		return err
	}
	for i, key := range state.keys {
		name, ok := key.(string)
		if !ok {
			return malformed("", "a tensor's name is %s", kindOf(key))
		}
		if err := a.add(name, state.values[i]); err != nil {
			return err
		}
	}
	slices.SortFunc(a.file.Tensors, func(x, y *Tensor) int {
		return cmp.Or(cmp.Compare(x.Offset, y.Offset), strings.Compare(x.Name, y.Name))
	})
	return nil
}

// content reads a small entry whole; its checksum is checked.
func (a *archive) content(name string, most uint64) ([]byte, error) {
	entry, ok := a.entries[name]
	if !ok {
		e := malformed("", "the zip archive has no %s: not a file of torch.save", name)
		e.Hint = torchConvert
		return nil, e
	}
	if entry.UncompressedSize64 > most {
		return nil, malformed("", "%s has %d bytes: want at most %d", entry.Name, entry.UncompressedSize64, most)
	}
	r, err := entry.Open()
	if err != nil {
		return nil, malformed("", "%s: %v", entry.Name, err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, malformed("", "%s: %v", entry.Name, err)
	}
	return text, nil
}

// stateOf finds the dictionary of tensors.
func stateOf(root any, key string) (*pickledDict, error) {
	dict, ok := root.(*pickledDict)
	if !ok {
		e := malformed("", "holds %s: want a dictionary of tensors", kindOf(root))
		e.Hint = "save model.state_dict(), not the model"
		return nil, e
	}
	if key != "" {
		return descend(dict, key)
	}
	for _, wanted := range modelKeys {
		if inner, ok := dict.find(wanted).(*pickledDict); ok {
			return inner, nil
		}
	}
	return dict, nil
}

// descend follows a dotted key.
func descend(dict *pickledDict, key string) (*pickledDict, error) {
	for step := range strings.SplitSeq(key, ".") {
		inner, ok := dict.find(step).(*pickledDict)
		if !ok {
			return nil, &Error{Op: "read", Err: ErrMissing, Reason: fmt.Sprintf("holds no dictionary %q", key), Hint: "there are: " + dict.dictionaries()}
		}
		dict = inner
	}
	return dict, nil
}

func (d *pickledDict) find(key string) any {
	for i, k := range d.keys {
		if k == key {
			return d.values[i]
		}
	}
	return nil
}

// dictionaries lists the keys of those in d, for messages.
func (d *pickledDict) dictionaries() string {
	var names []string
	for i, key := range d.keys {
		if _, ok := d.values[i].(*pickledDict); ok && len(names) < maxMismatches {
			names = append(names, fmt.Sprintf("%.40v", key))
		}
	}
	return strings.Join(names, ", ")
}

func (a *archive) add(name string, value any) error {
	if value == nil {
		return nil // a module's extra state, of which there is none
	}
	t, err := a.rebuild(name, value)
	if err != nil {
		return err
	}
	if a.seen[name] {
		return malformed(name, "is there twice")
	}
	a.seen[name] = true
	a.file.Tensors = append(a.file.Tensors, t)
	return nil
}

// rebuild finds the tensor that a value is.
func (a *archive) rebuild(name string, value any) (*Tensor, error) {
	call, ok := value.(*pickledCall)
	if ok && call.of == pickledGlobal("torch._utils _rebuild_parameter") && len(call.args) > 0 {
		call, ok = call.args[0].(*pickledCall)
	}
	if !ok || (call.of != pickledGlobal("torch._utils _rebuild_tensor_v2") && call.of != pickledGlobal("torch._utils _rebuild_tensor_v3")) {
		e := malformed(name, "is %s: want a plain tensor", kindOf(value))
		e.Hint = "save a dictionary of tensors alone, or under the name state_dict"
		return nil, e
	}
	return a.tensor(name, call)
}

// tensor checks the arguments of _rebuild_tensor_v2(storage, offset, shape,
// strides, requires_grad, hooks), or of v3, which has the dtype last.
func (a *archive) tensor(name string, call *pickledCall) (*Tensor, error) {
	if len(call.args) < 4 {
		return nil, malformed(name, "is made of %d arguments: want at least 4", len(call.args))
	}
	id, _ := call.args[0].(pickledID)
	storage, _ := id.id.(pickledTuple)
	offset, isInt := call.args[1].(int64)
	shape, hasShape := integers(call.args[2])
	strides, hasStrides := integers(call.args[3])
	if len(storage) < 5 || storage[0] != "storage" || !isInt || !hasShape || !hasStrides || len(shape) != len(strides) {
		return nil, malformed(name, "is not made of a storage, an offset, a shape and as many strides")
	}
	typed, _ := storage[1].(pickledGlobal)
	if string(typed) == "torch.storage UntypedStorage" && len(call.args) > 6 {
		typed, _ = call.args[6].(pickledGlobal)
	}
	dtype, ok := torchDtype(strings.TrimPrefix(string(typed), "torch "))
	if !ok {
		e := malformed(name, "is of type %s, which is not read", kindOf(typed))
		e.Hint = torchConvert
		return nil, e
	}
	key, _ := storage[2].(string)
	entry, ok := a.entries[path.Join("data", key)]
	if !ok || key == "" {
		return nil, &Error{Op: "read", Tensor: name, Err: ErrMissing, Reason: fmt.Sprintf("its storage data/%s is not in the archive", key)}
	}
	if !contiguous(shape, strides) {
		e := malformed(name, "is a view with strides %v of shape %v, not one row after the other", strides, shape)
		e.Hint = "save it with .contiguous(), or " + torchConvert
		return nil, e
	}
	return a.place(name, dtype, shape, offset, entry)
}

// place finds the tensor's bytes in the file.
func (a *archive) place(name string, dtype Dtype, shape []int64, offset int64, entry *zip.File) (*Tensor, error) {
	size, ok := byteSize(dtype, shape)
	if !ok {
		return nil, malformed(name, "shape %v of %s has no size in whole bytes below 2^61", shape, dtype)
	}
	if entry.Method != zip.Store || entry.CompressedSize64 != entry.UncompressedSize64 || entry.Flags&1 != 0 {
		e := malformed(name, "its storage is compressed or encrypted, which torch.save never does")
		e.Hint = torchConvert
		return nil, e
	}
	width := int64(dtype.Bits() / 8)
	if stored := entry.UncompressedSize64; offset < 0 || stored > 1<<61 || offset > int64(stored)/width || size > int64(stored)-offset*width {
		return nil, malformed(name, "elements %d to %d lie outside of its storage of %d bytes", offset, offset+size/width, stored)
	}
	begin, err := entry.DataOffset()
	if err != nil {
		return nil, malformed(name, "its storage: %v", err)
	}
	if end := begin + int64(entry.UncompressedSize64); begin < 0 || end < begin || end > a.size {
		return nil, &Error{Op: "read", Tensor: name, Err: ErrTruncated, Hint: "copy or download the file again",
			Reason: fmt.Sprintf("truncated: its storage ends at byte %d, the archive at %d", end, a.size)}
	}
	return &Tensor{Name: name, Dtype: dtype, Shape: shape, File: a.file, Offset: a.start + begin + offset*width, Size: size}, nil
}

func integers(x any) ([]int64, bool) {
	items, ok := x.(pickledTuple)
	out := make([]int64, len(items))
	for i, item := range items {
		n, isInt := item.(int64)
		out[i], ok = n, ok && isInt
	}
	return out, ok
}

// contiguous reports whether elements lie row-major without gaps.
func contiguous(shape, strides []int64) bool {
	if slices.Contains(shape, 0) {
		return true
	}
	next := int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		if shape[i] != 1 && strides[i] != next {
			return false
		}
		next *= shape[i] // an overflow shows in byteSize
	}
	return true
}
