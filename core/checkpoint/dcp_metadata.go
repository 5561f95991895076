package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// A checkpoint of torch.distributed.checkpoint is a pickle, .metadata, that says
// which box of which tensor lies where in the ranks' .distcp files; each box is
// an archive of torch.save.
const (
	metadataName = ".metadata"
	maxMetadata  = 512 << 20
	maxChunks    = 1 << 16 // of a tensor
)

// What .metadata is made of, and nothing else is read.
const (
	dcpModule  = "torch.distributed.checkpoint.metadata "
	dcpStorage = "torch.distributed.checkpoint.filesystem _StorageInfo"
)

func dcpKnown(g pickledGlobal) bool {
	module, name, _ := strings.Cut(string(g), " ")
	switch module {
	case strings.TrimSpace(dcpModule):
		return slices.Contains([]string{"Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
			"TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"}, name)
	case "torch": // Size, and dtypes, of which those not read are refused where a tensor has one
		return name == "Size" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
	case "torch.serialization":
		return name == "_get_layout"
	case "pathlib", "pathlib._local": // the folder it was saved to
		return strings.HasSuffix(name, "Path")
	case "collections":
		return name == "OrderedDict"
	}
	return string(g) == dcpStorage
}

// dcpItem is an entry of the saved dictionary.
type dcpItem struct {
	name   string   // flattened: keys joined by dots
	path   []string // the keys
	object bool     // anything but a tensor

	dtype  string // as torch names it
	shape  []int64
	chunks []dcpChunk
}

// dcpChunk is a box of a tensor, and where it lies.
type dcpChunk struct {
	at, shape []int64
	where     *dcpPlace // nil: the metadata does not say
}

// dcpPlace is a range of a file that holds an archive.
type dcpPlace struct {
	file           string
	offset, length int64
	transformed    string // how its bytes were changed when they were written; "": they were not
}

// readDCP reads .metadata as data: nothing in it is run.
func readDCP(path string) ([]dcpItem, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size > maxMetadata {
		return nil, &Error{Op: "read", File: path, Err: ErrFormat, Reason: fmt.Sprintf("has %d bytes: want at most %d", f.Size, maxMetadata)}
	}
	root, err := unpickleOf(f.f, dcpKnown)
	if err != nil {
		return nil, refusedDCP(path, err)
	}
	items, err := parseDCP(root)
	return items, inFile(err, path)
}

// refusedDCP says of a pickle what else might read it.
func refusedDCP(path string, err error) error {
	e := &Error{Op: "read", File: path, Reason: err.Error(), Err: ErrFormat,
		Hint: "put it together with PyTorch where that class is installed: python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pt, and merge model.pt"}
	if p := (*os.PathError)(nil); errors.As(err, &p) {
		return system("read", path, err)
	}
	if u := (*unknownGlobal)(nil); errors.As(err, &u) && strings.HasPrefix(string(u.name), "megatron") {
		e.Hint = megatronConvert
	}
	return e
}

func parseDCP(root any) ([]dcpItem, error) {
	fields, err := attributes(root, dcpModule+"Metadata")
	if err != nil {
		return nil, err
	}
	state, isDict := fields["state_dict_metadata"].(*pickledDict)
	storage, hasStorage := fields["storage_data"].(*pickledDict)
	if !isDict || !hasStorage {
		return nil, malformed("", "state_dict_metadata is %s and storage_data %s: want dictionaries", kindOf(fields["state_dict_metadata"]), kindOf(fields["storage_data"]))
	}
	places, err := parsePlaces(storage)
	if err != nil {
		return nil, err
	}
	paths, err := parsePaths(fields["planner_data"])
	if err != nil {
		return nil, err
	}
	var items []dcpItem
	seen := map[string]bool{}
	for i, key := range state.keys {
		name, ok := key.(string)
		if !ok || name == "" || seen[name] {
			return nil, malformed("", "an entry's name is %s, or is there twice", kindOf(key))
		}
		seen[name] = true
		item := dcpItem{name: name, path: []string{name}}
		if paths != nil && paths[name] != nil {
			item.path = paths[name]
		}
		if err := item.parse(state.values[i], places); err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

// attributes are those of an object of this class.
func attributes(x any, class string) (map[string]any, error) {
	object, ok := x.(*pickledCall)
	if !ok || object.of != pickledGlobal(class) {
		return nil, malformed("", "holds %s: want an object of %s", kindOf(x), strings.ReplaceAll(class, " ", "."))
	}
	state, ok := object.state.(*pickledDict)
	if !ok {
		return nil, malformed("", "an object of %s has the state %s: want a dictionary", strings.ReplaceAll(class, " ", "."), kindOf(object.state))
	}
	fields := map[string]any{}
	for i, key := range state.keys {
		if name, ok := key.(string); ok {
			fields[name] = state.values[i]
		}
	}
	return fields, nil
}

// sizes reads a torch.Size.
func sizes(x any) ([]int64, bool) {
	if call, ok := x.(*pickledCall); ok && call.of == pickledGlobal("torch Size") && len(call.args) == 1 {
		x = call.args[0]
	}
	return integers(x)
}

// placeOf is how a box of a tensor is looked up.
func placeOf(name string, at []int64) string { return fmt.Sprintf("%v %s", at, name) }

func parsePlaces(storage *pickledDict) (map[string]*dcpPlace, error) {
	places := map[string]*dcpPlace{}
	for i, key := range storage.keys {
		index, err := attributes(key, dcpModule+"MetadataIndex")
		if err != nil {
			return nil, err
		}
		name, isText := index["fqn"].(string)
		if !isText {
			return nil, malformed("", "a place is that of %s: want a name", kindOf(index["fqn"]))
		}
		if index["offset"] == nil {
			continue // of an object, not of a tensor
		}
		at, ok := sizes(index["offset"])
		if !ok {
			return nil, malformed(name, "a chunk at %s: want a torch.Size", kindOf(index["offset"]))
		}
		place, err := parsePlace(name, storage.values[i])
		if err != nil {
			return nil, err
		}
		if places[placeOf(name, at)] != nil {
			return nil, malformed(name, "the chunk at %v has two places", at)
		}
		places[placeOf(name, at)] = place
	}
	return places, nil
}

func parsePlace(name string, x any) (*dcpPlace, error) {
	fields, err := attributes(x, dcpStorage)
	if err != nil {
		return nil, inTensor(err, name)
	}
	p := &dcpPlace{}
	var isText, hasOffset, hasLength bool
	p.file, isText = fields["relative_path"].(string)
	p.offset, hasOffset = fields["offset"].(int64)
	p.length, hasLength = fields["length"].(int64)
	if !isText || !hasOffset || !hasLength {
		return nil, malformed(name, "a place without relative_path, offset or length")
	}
	if !plainName(p.file) {
		return nil, malformed(name, "is said to be in %q: want the name of a file in this folder", p.file)
	}
	if list, ok := fields["transform_descriptors"].(*pickledList); ok && len(list.items) > 0 {
		p.transformed = kindOf(list.items[0])
	}
	return p, nil
}

// inTensor completes an error of this package with the tensor it is about.
func inTensor(err error, name string) error {
	var e *Error
	if errors.As(err, &e) && e.Tensor == "" {
		e.Tensor = name
	}
	return err
}

// parsePaths reads which keys each flattened name was made of; nil: not said.
func parsePaths(x any) (map[string][]string, error) {
	planner, ok := x.(*pickledDict)
	if !ok {
		return nil, nil
	}
	paths := map[string][]string{}
	for i, key := range planner.keys {
		name, isText := key.(string)
		steps, isTuple := planner.values[i].(pickledTuple)
		if !isText || !isTuple {
			return nil, malformed("", "planner_data has %s under %s: want the keys of each name", kindOf(planner.values[i]), kindOf(key))
		}
		var path []string
		for _, step := range steps {
			switch step.(type) {
			case string, int64:
				path = append(path, fmt.Sprint(step))
			default:
				return nil, malformed(name, "one of its keys is %s", kindOf(step))
			}
		}
		if strings.Join(path, ".") != name {
			return nil, malformed(name, "its keys are %q, which do not make its name", path)
		}
		paths[name] = path
	}
	return paths, nil
}

// parse reads what the metadata says of an entry.
func (item *dcpItem) parse(x any, places map[string]*dcpPlace) error {
	if call, ok := x.(*pickledCall); ok && call.of == pickledGlobal(dcpModule+"BytesStorageMetadata") {
		item.object = true
		return nil
	}
	fields, err := attributes(x, dcpModule+"TensorStorageMetadata")
	if err != nil {
		return inTensor(err, item.name)
	}
	properties, ok := fields["properties"].(*pickledCall)
	if !ok || properties.of != pickledGlobal(dcpModule+"TensorProperties") {
		return malformed(item.name, "its properties are %s", kindOf(fields["properties"]))
	}
	state, _ := properties.state.(pickledTuple)
	if len(state) > 0 {
		dtype, _ := state[0].(pickledGlobal)
		item.dtype = strings.TrimPrefix(string(dtype), "torch ")
	}
	shape, hasShape := sizes(fields["size"])
	chunks, hasChunks := fields["chunks"].(*pickledList)
	if item.dtype == "" || !hasShape || !hasChunks {
		return malformed(item.name, "has no dtype, size or list of chunks")
	}
	if len(chunks.items) > maxChunks {
		return malformed(item.name, "is cut into %d chunks: want at most %d", len(chunks.items), maxChunks)
	}
	item.shape = shape
	for _, c := range chunks.items {
		fields, err := attributes(c, dcpModule+"ChunkStorageMetadata")
		if err != nil {
			return inTensor(err, item.name)
		}
		at, hasAt := sizes(fields["offsets"])
		size, hasSize := sizes(fields["sizes"])
		if !hasAt || !hasSize || len(at) != len(shape) || len(size) != len(shape) {
			return malformed(item.name, "has a chunk that has not %d offsets and sizes", len(shape))
		}
		item.chunks = append(item.chunks, dcpChunk{at: at, shape: size, where: places[placeOf(item.name, at)]})
	}
	return nil
}
