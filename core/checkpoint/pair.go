package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Pairing says which tensors of several checkpoints belong together.
type Pairing struct {
	Rows   []Row // in the order of the first checkpoint
	Dtypes []Row // the rows whose checkpoints differ in dtype; the caller decides
	Ties   []Tie // not in Rows
}

// Row is one name; Tensors has one entry per checkpoint, in the order given.
type Row struct {
	Name    string
	Tensors []*Tensor
}

// Tie is a tensor that some checkpoints store although it is the same weights as
// Of, and the others leave out because their config ties the two.
type Tie struct {
	Name, Of string
	Stored   []int // checkpoints that store it
}

// maxMismatches bounds the errors of one Pair: two unrelated models differ everywhere.
const maxMismatches = 20

// Pair matches tensors by name, against the first checkpoint. Every missing or extra
// tensor and every other shape is an *Error of its own; they come joined.
func Pair(sources []*Folder) (*Pairing, error) {
	if len(sources) == 0 {
		return nil, &Error{Op: "pair", Reason: "there are no checkpoints"}
	}
	ties, err := findTies(sources)
	if err != nil {
		return nil, err
	}
	p := &Pairing{Ties: ties}
	tied := func(name string) bool {
		return slices.ContainsFunc(ties, func(t Tie) bool { return t.Name == name })
	}
	var errs []error
	for _, first := range sources[0].Tensors {
		if tied(first.Name) {
			continue
		}
		row, bad := pairRow(first, sources)
		errs = append(errs, bad...)
		if len(bad) > 0 {
			continue
		}
		p.Rows = append(p.Rows, row)
		if slices.ContainsFunc(row.Tensors, func(t *Tensor) bool { return t.Dtype != first.Dtype }) {
			p.Dtypes = append(p.Dtypes, row)
		}
	}
	for _, source := range sources[1:] {
		for _, t := range source.Tensors {
			if _, ok := sources[0].Tensor(t.Name); !ok && !tied(t.Name) {
				errs = append(errs, &Error{Op: "pair", File: t.File.Path, Tensor: t.Name, Err: ErrExtra,
					Reason: "not in " + sources[0].Dir, Hint: "merge checkpoints of one model"})
			}
		}
	}
	if len(errs) > maxMismatches {
		more := fmt.Errorf("checkpoint: pair: %d more tensors differ", len(errs)-maxMismatches)
		errs = append(errs[:maxMismatches], more)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return p, nil
}

func pairRow(first *Tensor, sources []*Folder) (Row, []error) {
	row := Row{Name: first.Name}
	var errs []error
	for _, source := range sources {
		t, ok := source.Tensor(first.Name)
		switch {
		case !ok:
			errs = append(errs, &Error{Op: "pair", File: source.Dir, Tensor: first.Name, Err: ErrMissing,
				Reason: "missing, but in " + first.File.Path, Hint: "merge checkpoints of one model"})
		case !slices.Equal(t.Shape, first.Shape):
			errs = append(errs, &Error{Op: "pair", File: t.File.Path, Tensor: first.Name, Err: ErrShape,
				Reason: fmt.Sprintf("has shape %v, but %v in %s", t.Shape, first.Shape, first.File.Path), Hint: "merge checkpoints of one model"})
		}
		row.Tensors = append(row.Tensors, t)
	}
	return row, errs
}

// findTies looks at names that only some checkpoints have. Such a name is tied if
// each checkpoint without it says tie_word_embeddings, and each one with it has
// another tensor of the same shape, dtype and bytes, the same one everywhere.
func findTies(sources []*Folder) ([]Tie, error) {
	count := map[string]int{}
	var names []string
	for _, source := range sources {
		for _, t := range source.Tensors {
			if count[t.Name]++; count[t.Name] == 1 {
				names = append(names, t.Name)
			}
		}
	}
	var ties []Tie
	for _, name := range names {
		if count[name] == len(sources) {
			continue
		}
		tie, err := tieOf(name, sources)
		if err != nil {
			return nil, err
		}
		if tie.Of != "" {
			ties = append(ties, tie)
		}
	}
	return ties, nil
}

// tieOf returns a Tie with an empty Of when name is not tied.
func tieOf(name string, sources []*Folder) (Tie, error) {
	tie := Tie{Name: name}
	for i, source := range sources {
		t, ok := source.Tensor(name)
		if !ok {
			if tied, err := tiesEmbeddings(source.Dir); err != nil || !tied {
				return Tie{}, err
			}
			continue
		}
		tie.Stored = append(tie.Stored, i)
		twin, err := twinOf(t, source)
		if err != nil || twin == "" || (tie.Of != "" && tie.Of != twin) {
			return Tie{}, err
		}
		tie.Of = twin
	}
	return tie, nil
}

// twinOf names another tensor of source with t's matrix, or "".
func twinOf(t *Tensor, source *Folder) (string, error) {
	if len(t.Shape) != 2 {
		return "", nil // only embeddings are tied
	}
	for _, other := range source.Tensors {
		if other == t || other.Dtype != t.Dtype || !slices.Equal(other.Shape, t.Shape) {
			continue
		}
		if same, err := sameBytes(t, other); err != nil || same {
			return other.Name, err
		}
	}
	return "", nil
}

func sameBytes(a, b *Tensor) (bool, error) {
	p, q := make([]byte, min(hashChunk, a.Size)), make([]byte, min(hashChunk, a.Size))
	for at := int64(0); at < a.Size; at += int64(len(p)) {
		n := min(int64(len(p)), a.Size-at)
		p, q = p[:n], q[:n]
		if err := errors.Join(a.read(p, at), b.read(q, at)); err != nil {
			return false, err
		}
		if !bytes.Equal(p, q) {
			return false, nil
		}
	}
	return true, nil
}
