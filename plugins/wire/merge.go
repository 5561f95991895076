package wire

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeWeightsRequest converts a request for weights.
func EncodeWeightsRequest(req *core.WeightsRequest) (*pb.WeightsRequest, error) {
	params, err := EncodeParams(req.Params)
	return &pb.WeightsRequest{Sources: int64(req.Sources), Steps: req.Steps, Params: params}, err
}

// DecodeWeightsRequest reads a request for weights.
func DecodeWeightsRequest(m *pb.WeightsRequest) (*core.WeightsRequest, error) {
	sources, err := decodeSources(m.GetSources(), m.GetSteps())
	return &core.WeightsRequest{Sources: sources, Steps: m.GetSteps(), Params: DecodeParams(m.GetParams())}, err
}

func decodeSources(sources int64, steps []float64) (int, error) {
	n, err := count("sources", sources, 1)
	if err != nil {
		return 0, err
	}
	if len(steps) != 0 && len(steps) != n {
		return 0, core.Invalid("", "message: %d steps: want one for each of %d sources", len(steps), n)
	}
	return n, finite("step", steps...)
}

// Placement refers to an operand in a file that the plugin knows, to read or to
// write it: the file's id there and the offset of the operand in what was
// announced.
type Placement func(operand core.MergeOperand, writable bool) (id uint64, offset int64, err error)

// EncodeMerge converts a batch of tensors to merge.
func EncodeMerge(req *core.MergeRequest, place Placement) (*pb.MergeRequest, error) {
	params, err := EncodeParams(req.Params)
	if err != nil {
		return nil, err
	}
	m := &pb.MergeRequest{
		Sources: int64(req.Sources), Steps: req.Steps, Float64: req.Float64, AllowNonFinite: req.AllowNonFinite,
		Uncached: req.Uncached, Threads: int64(req.Threads), Params: params,
	}
	for _, row := range req.Weights {
		m.Weights = append(m.Weights, &pb.DoubleList{Values: row})
	}
	for i := range req.Tensors {
		t, err := encodeMergeTensor(&req.Tensors[i], place)
		if err != nil {
			return nil, err
		}
		m.Tensors = append(m.Tensors, t)
	}
	return m, nil
}

func encodeMergeTensor(t *core.MergeTensor, place Placement) (*pb.MergeTensor, error) {
	m := &pb.MergeTensor{Name: t.Name, Shape: t.Shape}
	var err error
	if m.Inputs, err = encodeOperands(t.Inputs, false, place); err != nil {
		return nil, err
	}
	if m.Outputs, err = encodeOperands(t.Outputs, true, place); err != nil {
		return nil, err
	}
	if t.Base != nil {
		m.Base, err = encodeOperand(*t.Base, false, place)
	}
	return m, err
}

func encodeOperands(operands []core.MergeOperand, writable bool, place Placement) ([]*pb.FileRef, error) {
	refs := make([]*pb.FileRef, len(operands))
	for i, o := range operands {
		ref, err := encodeOperand(o, writable, place)
		if err != nil {
			return nil, err
		}
		refs[i] = ref
	}
	return refs, nil
}

func encodeOperand(o core.MergeOperand, writable bool, place Placement) (*pb.FileRef, error) {
	ref := &pb.FileRef{Size: o.Extent.Size, Dtype: pb.Dtype(o.Dtype), Writable: writable, Path: o.Path}
	var err error
	if o.Extent.Cut == nil {
		ref.FileId, ref.Offset, err = place(o, writable)
		return ref, err
	}
	for _, p := range o.Extent.Cut.Parts {
		size := o.Extent.Cut.Item
		for _, n := range p.Shape {
			size *= n
		}
		part := &pb.FilePart{At: p.At, Shape: p.Shape}
		part.FileId, part.Offset, err = place(core.MergeOperand{Extent: tensor.Extent{File: p.File, Offset: p.Offset, Size: size}}, writable)
		if err != nil {
			return nil, err
		}
		ref.Parts = append(ref.Parts, part)
	}
	return ref, nil
}

// DecodeMerge reads a batch of tensors to merge.
func DecodeMerge(m *pb.MergeRequest, memory Memory) (*core.MergeRequest, error) {
	sources, err := decodeSources(m.GetSources(), m.GetSteps())
	if err != nil {
		return nil, err
	}
	threads, err := count("threads", m.GetThreads(), 0)
	if err != nil {
		return nil, err
	}
	req := &core.MergeRequest{
		Sources: sources, Steps: m.GetSteps(), Float64: m.GetFloat64(), AllowNonFinite: m.GetAllowNonFinite(),
		Uncached: m.GetUncached(), Threads: threads, Params: DecodeParams(m.GetParams()),
	}
	for _, row := range m.GetWeights() {
		if len(row.GetValues()) != sources {
			return nil, core.Invalid("", "message: %d weights: want one for each of %d sources", len(row.GetValues()), sources)
		}
		if err := finite("weight", row.GetValues()...); err != nil {
			return nil, err
		}
		req.Weights = append(req.Weights, row.GetValues())
	}
	for _, t := range m.GetTensors() {
		decoded, err := decodeMergeTensor(t, sources, memory)
		if err != nil {
			return nil, err
		}
		if req.Weights != nil && len(req.Weights) != len(decoded.Outputs) {
			return nil, core.Invalid("", "message: %d rows of weights: want one for each of %d outputs of %s", len(req.Weights), len(decoded.Outputs), decoded.Name)
		}
		req.Tensors = append(req.Tensors, decoded)
	}
	return req, nil
}

func decodeMergeTensor(m *pb.MergeTensor, sources int, memory Memory) (core.MergeTensor, error) {
	t := core.MergeTensor{Name: m.GetName(), Shape: m.GetShape()}
	if len(m.GetInputs()) != sources || len(m.GetOutputs()) == 0 {
		return t, core.Invalid("", "message: %s has %d inputs and %d outputs: want %d and at least 1", t.Name, len(m.GetInputs()), len(m.GetOutputs()), sources)
	}
	var err error
	if t.Inputs, err = decodeOperands(m, m.GetInputs(), memory, false); err != nil {
		return t, err
	}
	if t.Outputs, err = decodeOperands(m, m.GetOutputs(), memory, true); err != nil {
		return t, err
	}
	if m.GetBase() != nil {
		base, err := decodeOperand(m, m.GetBase(), memory, false)
		if err != nil {
			return t, err
		}
		t.Base = &base
	}
	return t, nil
}

func decodeOperands(m *pb.MergeTensor, refs []*pb.FileRef, memory Memory, writable bool) ([]core.MergeOperand, error) {
	operands := make([]core.MergeOperand, len(refs))
	for i, ref := range refs {
		operand, err := decodeOperand(m, ref, memory, writable)
		if err != nil {
			return nil, err
		}
		operands[i] = operand
	}
	return operands, nil
}

func decodeOperand(m *pb.MergeTensor, ref *pb.FileRef, memory Memory, writable bool) (core.MergeOperand, error) {
	dtype, err := decodeDtype(m.GetName(), ref.GetDtype())
	if err != nil {
		return core.MergeOperand{}, err
	}
	n, err := elements(m.GetName(), dtype, m.GetShape())
	if err != nil {
		return core.MergeOperand{}, err
	}
	if ref.GetSize() != n*dtype.Size() {
		return core.MergeOperand{}, core.Invalid("", "message: %s: %v%v in %d bytes: want %d", m.GetName(), dtype, m.GetShape(), ref.GetSize(), n*dtype.Size())
	}
	if ref.GetWritable() != writable {
		return core.MergeOperand{}, core.Invalid("", "message: %s: an operand with writable=%t: want %t", m.GetName(), ref.GetWritable(), writable)
	}
	if len(ref.GetParts()) > 0 {
		extent, err := decodeParts(m, ref, dtype, memory)
		return core.MergeOperand{Dtype: dtype, Extent: extent, Path: ref.GetPath()}, err
	}
	extent, err := memory.File(ref.GetFileId(), ref.GetOffset(), ref.GetSize(), writable)
	if err != nil {
		return core.MergeOperand{}, core.Invalid("", "message: %s: %s", m.GetName(), err)
	}
	return core.MergeOperand{Dtype: dtype, Extent: extent, Path: ref.GetPath()}, nil
}

// decodeParts checks that each part lies in the array and in its file. That they
// tile the array shows when they are read.
func decodeParts(m *pb.MergeTensor, ref *pb.FileRef, dtype tensor.Dtype, memory Memory) (tensor.Extent, error) {
	if ref.GetWritable() {
		return tensor.Extent{}, core.Invalid("", "message: %s: an output in parts", m.GetName())
	}
	cut := &tensor.Cut{Item: dtype.Size(), Shape: m.GetShape()}
	for _, p := range ref.GetParts() {
		if len(p.GetAt()) != len(m.GetShape()) || len(p.GetShape()) != len(m.GetShape()) {
			return tensor.Extent{}, core.Invalid("", "message: %s: a part at %v of shape %v: want %d axes", m.GetName(), p.GetAt(), p.GetShape(), len(m.GetShape()))
		}
		size := dtype.Size()
		for axis, n := range p.GetShape() {
			if at := p.GetAt()[axis]; at < 0 || n < 1 || n > m.GetShape()[axis] || at > m.GetShape()[axis]-n {
				return tensor.Extent{}, core.Invalid("", "message: %s: a part at %v of shape %v outside of %v", m.GetName(), p.GetAt(), p.GetShape(), m.GetShape())
			}
			size *= n // at most the array's size
		}
		in, err := memory.File(p.GetFileId(), p.GetOffset(), size, false)
		if err != nil {
			return tensor.Extent{}, core.Invalid("", "message: %s: %s", m.GetName(), err)
		}
		cut.Parts = append(cut.Parts, tensor.Part{File: in.File, Offset: in.Offset, At: p.GetAt(), Shape: p.GetShape()})
	}
	return tensor.Extent{File: cut.Parts[0].File, Size: ref.GetSize(), Cut: cut}, nil
}

// EncodeMergeResponse converts the report on a batch.
func EncodeMergeResponse(r *core.MergeResponse) *pb.MergeResponse {
	m := &pb.MergeResponse{Backend: r.Backend, Notes: r.Notes}
	for _, t := range r.Tensors {
		m.Tensors = append(m.Tensors, &pb.TensorReport{Name: t.Name, NonFinite: t.NonFinite, Policy: t.Policy})
	}
	return m
}

// DecodeMergeResponse reads the report on a batch.
func DecodeMergeResponse(m *pb.MergeResponse) *core.MergeResponse {
	r := &core.MergeResponse{Backend: m.GetBackend(), Notes: m.GetNotes()}
	for _, t := range m.GetTensors() {
		r.Tensors = append(r.Tensors, core.TensorReport{Name: t.GetName(), NonFinite: t.GetNonFinite(), Policy: t.GetPolicy()})
	}
	return r
}

// DecodeWeights reads the weights of a linear merge.
func DecodeWeights(m *pb.WeightsResponse, sources int) ([]float64, error) {
	if len(m.GetWeights()) != sources {
		return nil, core.Invalid("", "message: %d weights: want one for each of %d sources", len(m.GetWeights()), sources)
	}
	return m.GetWeights(), finite("weight", m.GetWeights()...)
}
