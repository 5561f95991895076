package wire

import (
	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeCompare converts a batch of tensors to compare.
func EncodeCompare(req *core.CompareRequest, place Placement) (*pb.CompareRequest, error) {
	m := &pb.CompareRequest{Sources: int64(req.Sources), Threads: int64(req.Threads)}
	for i := range req.Tensors {
		t := &req.Tensors[i]
		inputs, err := encodeOperands(t.Inputs, false, place)
		if err != nil {
			return nil, err
		}
		m.Tensors = append(m.Tensors, &pb.CompareTensor{Name: t.Name, Shape: t.Shape, Inputs: inputs})
	}
	return m, nil
}

// DecodeCompare reads a batch of tensors to compare.
func DecodeCompare(m *pb.CompareRequest, memory Memory) (*core.CompareRequest, error) {
	sources, err := count("sources", m.GetSources(), 1)
	if err != nil {
		return nil, err
	}
	threads, err := count("threads", m.GetThreads(), 0)
	if err != nil {
		return nil, err
	}
	req := &core.CompareRequest{Sources: sources, Threads: threads}
	for _, t := range m.GetTensors() {
		decoded := core.MergeTensor{Name: t.GetName(), Shape: t.GetShape()}
		if len(t.GetInputs()) != sources {
			return nil, core.Invalid("", "message: %s has %d inputs: want %d", t.GetName(), len(t.GetInputs()), sources)
		}
		named := &pb.MergeTensor{Name: t.GetName(), Shape: t.GetShape()}
		if decoded.Inputs, err = decodeOperands(named, t.GetInputs(), memory, false); err != nil {
			return nil, err
		}
		req.Tensors = append(req.Tensors, decoded)
	}
	return req, nil
}

// EncodeCompareResponse converts the products of a batch.
func EncodeCompareResponse(r *core.CompareResponse) *pb.CompareResponse {
	m := &pb.CompareResponse{}
	for _, products := range r.Products {
		m.Tensors = append(m.Tensors, &pb.Gram{Products: products})
	}
	return m
}

// DecodeCompareResponse reads the products of a batch.
func DecodeCompareResponse(m *pb.CompareResponse, req *core.CompareRequest) (*core.CompareResponse, error) {
	if len(m.GetTensors()) != len(req.Tensors) {
		return nil, core.Invalid("", "message: products of %d tensors: want %d", len(m.GetTensors()), len(req.Tensors))
	}
	r := &core.CompareResponse{}
	for _, t := range m.GetTensors() {
		if len(t.GetProducts()) != req.Sources*req.Sources {
			return nil, core.Invalid("", "message: %d products: want %d", len(t.GetProducts()), req.Sources*req.Sources)
		}
		if err := finite("product", t.GetProducts()...); err != nil {
			return nil, err
		}
		r.Products = append(r.Products, t.GetProducts())
	}
	return r, nil
}
