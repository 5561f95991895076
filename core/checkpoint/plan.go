package checkpoint

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// DefaultShardSize is the largest shard a plan makes by default.
const DefaultShardSize = int64(5) << 30

// Spec describes a tensor to be written.
type Spec struct {
	Name  string
	Dtype Dtype
	Shape []int64
}

// Plan says which file holds which tensor at which offset. It is a pure function
// of its inputs, so two runs of one recipe plan the same bytes.
type Plan struct {
	Shards []Shard
	Size   int64 // bytes of all files, the index not counted
}

// Shard is one planned file.
type Shard struct {
	Name  string
	Specs []Spec // in the order of the file
	Size  int64  // bytes, header included

	head   []byte // the encoded header
	header *header
}

// Split plans shards of at most maxBytes of tensors each, filled in the order of
// specs; a tensor larger than that has a shard of its own. 0 means DefaultShardSize.
func Split(specs []Spec, maxBytes int64) (*Plan, error) {
	if maxBytes <= 0 {
		maxBytes = DefaultShardSize
	}
	var groups [][]Spec
	left := int64(-1) // no shard yet
	for _, s := range specs {
		size, ok := byteSize(s.Dtype, s.Shape)
		if !ok {
			return nil, unsized(s)
		}
		if left < size {
			groups, left = append(groups, nil), max(maxBytes, size)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], s)
		left -= size
	}
	names := []string{singleName}
	if len(groups) > 1 {
		names = nil
		for i := range groups {
			names = append(names, fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(groups)))
		}
	}
	return newPlan(names, groups)
}

// Like plans the shards of source again: each tensor goes to the file of the same
// name, or, where the source is PyTorch's, of the same number. Every spec must be a tensor of source; tensors without a spec are left out.
func Like(specs []Spec, source *Folder) (*Plan, error) {
	byFile := map[string][]Spec{}
	for _, s := range specs {
		t, ok := source.Tensor(s.Name)
		if !ok {
			return nil, &Error{Op: "plan", File: source.Dir, Tensor: s.Name, Err: ErrMissing,
				Reason: "not in the checkpoint whose shards are to be kept", Hint: "plan by shard size instead"}
		}
		name := filepath.Base(t.File.Path)
		byFile[name] = append(byFile[name], s)
	}
	var names []string
	var groups [][]Spec
	for i, f := range source.Files {
		name := filepath.Base(f.Path)
		specs := byFile[name]
		if len(specs) == 0 {
			continue
		}
		if !source.Sharded {
			name = singleName
		} else if source.Torch {
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(source.Files))
		}
		names, groups = append(names, name), append(groups, specs)
	}
	return newPlan(names, groups)
}

func newPlan(names []string, groups [][]Spec) (*Plan, error) {
	p := &Plan{}
	seen := map[string]bool{"": true, metadataKey: true}
	for i, group := range groups {
		for _, s := range group {
			if seen[s.Name] || !utf8.ValidString(s.Name) {
				return nil, &Error{Op: "plan", Tensor: s.Name, Reason: "the name is not free", Hint: "use UTF-8 names that differ from each other, from the empty one and from " + metadataKey}
			}
			seen[s.Name] = true
		}
		shard, err := newShard(names[i], group)
		if err != nil {
			return nil, err
		}
		p.Shards = append(p.Shards, shard)
		p.Size += shard.Size
	}
	if len(p.Shards) == 0 {
		return nil, &Error{Op: "plan", Reason: "there are no tensors to write"}
	}
	if len(p.Shards) > 1 && slices.Contains(names, singleName) {
		return nil, &Error{Op: "plan", File: singleName, Reason: "this name is for a checkpoint of one file", Hint: "plan by shard size instead"}
	}
	return p, nil
}

func newShard(name string, specs []Spec) (Shard, error) {
	specs = slices.Clone(specs)
	slices.SortStableFunc(specs, func(a, b Spec) int {
		return cmp.Or(b.Dtype.rank()-a.Dtype.rank(), strings.Compare(a.Name, b.Name))
	})
	h := &header{metadata: map[string]string{"format": "pt"}}
	end := int64(0)
	for _, s := range specs {
		size, ok := byteSize(s.Dtype, s.Shape)
		if !ok || size > math.MaxInt64-maxHeader-lengthBytes-end {
			return Shard{}, unsized(s)
		}
		h.entries = append(h.entries, entry{s.Name, s.Dtype, s.Shape, end, end + size})
		end += size
	}
	head, err := h.encode()
	if err != nil {
		return Shard{}, inFile(err, name)
	}
	h.data = int64(len(head))
	return Shard{Name: name, Specs: specs, Size: h.data + end, head: head, header: h}, nil
}

func unsized(s Spec) error {
	return &Error{Op: "plan", Tensor: s.Name, Reason: fmt.Sprintf("%v of %q has no size in whole bytes below 2^61", s.Shape, s.Dtype)}
}

// sharded reports whether the plan needs an index.
func (p *Plan) sharded() bool { return len(p.Shards) > 1 || p.Shards[0].Name != singleName }

// entryName is the file that makes the checkpoint visible; it appears last.
func (p *Plan) entryName() string {
	if p.sharded() {
		return indexName
	}
	return singleName
}

func (p *Plan) index() ([]byte, error) {
	weights, size := map[string]string{}, int64(0)
	for _, s := range p.Shards {
		size += s.Size - int64(len(s.head))
		for _, spec := range s.Specs {
			weights[spec.Name] = s.Name
		}
	}
	return encodeIndex(weights, size)
}

// digest identifies the planned bytes, without the values.
func (p *Plan) digest() string {
	h := sha256.New()
	for _, s := range p.Shards {
		fmt.Fprintf(h, "%s\x00%d\x00", s.Name, len(s.head))
		h.Write(s.head)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
