package host

import (
	"context"
	"os"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// merge is a strategy of a plugin that merges tensors.
type merge struct{ strategy }

// weigher is one that is linear.
type weigher struct{ merge }

var (
	_ core.Comparer = (*merge)(nil)
	_ core.Weigher  = (*weigher)(nil)
)

// Merge implements core.MergeStrategy. The plugin maps the files itself.
func (g *merge) Merge(ctx context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	var response *core.MergeResponse
	err := g.call(ctx, func(ctx context.Context, c *call) error {
		m, err := wire.EncodeMerge(req, func(o core.MergeOperand, writable bool) (uint64, int64, error) {
			return c.place(ctx, o, writable)
		})
		if err != nil {
			return err
		}
		m.CallId, m.Strategy = c.id, g.info.Name
		c.writes = true
		var reply *pb.MergeResponse
		if err := c.invoke(func() (err error) {
			reply, err = pb.NewMergeServiceClient(c.session.Conn).Merge(ctx, m, callOptions...)
			return err
		}); err != nil {
			return err
		}
		response = wire.DecodeMergeResponse(reply)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// Compare implements core.Comparer.
func (g *merge) Compare(ctx context.Context, req *core.CompareRequest) (*core.CompareResponse, error) {
	var response *core.CompareResponse
	err := g.call(ctx, func(ctx context.Context, c *call) error {
		m, err := wire.EncodeCompare(req, func(o core.MergeOperand, writable bool) (uint64, int64, error) {
			return c.place(ctx, o, writable)
		})
		if err != nil {
			return err
		}
		m.CallId, m.Strategy = c.id, g.info.Name
		var reply *pb.CompareResponse
		if err := c.invoke(func() (err error) {
			reply, err = pb.NewMergeServiceClient(c.session.Conn).Compare(ctx, m, callOptions...)
			return err
		}); err != nil {
			return err
		}
		response, err = wire.DecodeCompareResponse(reply, req)
		return badAnswer(err)
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// Weights implements core.Weigher.
func (w *weigher) Weights(ctx context.Context, req *core.WeightsRequest) ([]float64, error) {
	var weights []float64
	err := w.call(ctx, func(ctx context.Context, c *call) error {
		m, err := wire.EncodeWeightsRequest(req)
		if err != nil {
			return err
		}
		m.CallId, m.Strategy = c.id, w.info.Name
		var reply *pb.WeightsResponse
		if err := c.invoke(func() (err error) {
			reply, err = pb.NewMergeServiceClient(c.session.Conn).Weights(ctx, m, callOptions...)
			return err
		}); err != nil {
			return err
		}
		weights, err = wire.DecodeWeights(reply, req.Sources)
		return badAnswer(err)
	})
	if err != nil {
		return nil, err
	}
	return weights, nil
}

// fileKey is a file as it is announced: to read or to write.
type fileKey struct {
	file     *os.File
	writable bool
}

// place announces the file of an operand, once for each call.
func (c *call) place(ctx context.Context, o core.MergeOperand, writable bool) (uint64, int64, error) {
	key := fileKey{file: o.Extent.File, writable: writable}
	file, ok := c.files[key]
	if !ok {
		var err error
		if file, err = c.announce(ctx, key); err != nil {
			return 0, 0, err
		}
	}
	if o.Extent.Offset < 0 || o.Extent.Size < 0 || o.Extent.Size > int64(file.Size()) || o.Extent.Offset > int64(file.Size())-o.Extent.Size {
		return 0, 0, core.Errorf(core.ErrCheckpoint, "%s: bytes [%d, +%d) of a file of %d", key.file.Name(), o.Extent.Offset, o.Extent.Size, file.Size())
	}
	return file.ID(), o.Extent.Offset, nil
}

func (c *call) announce(ctx context.Context, key fileKey) (*shm.File, error) {
	stat, err := key.file.Stat()
	if err != nil {
		return nil, core.Errorf(core.ErrCheckpoint, "%w", err)
	}
	file, err := c.service.host.pool.OpenFile(int(key.file.Fd()), 0, stat.Size(), key.writable)
	if err != nil {
		return nil, core.Errorf(core.ErrCheckpoint, "%s: %w", key.file.Name(), err)
	}
	if c.files == nil {
		c.files = make(map[fileKey]*shm.File)
	}
	c.files[key] = file
	if err := c.session.Peer.Ensure(ctx, file); err != nil {
		return nil, c.announceError(err)
	}
	return file, nil
}
