package kernel

import (
	"context"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// ByProbes is the DeviceSelector of strategies that choose by nothing but the
// mass of some rows and block means: the device measures, the strategy's
// Selector chooses on the host, and the tiles go back. It waits.
func ByProbes(c *DeviceCall, p *Part) (*DeviceSelection, error) {
	call, err := c.probing(p)
	if err != nil {
		return nil, err
	}
	selection, err := c.onHost(c.ctx, call)
	if err != nil {
		return nil, err
	}
	return call.forDevice(p, selection), nil
}

// enforce tops up what was chosen for a part.
func (c *DeviceCall) enforce(p *Part, chosen *DeviceSelection) (*DeviceSelection, error) {
	mask, heads, err := c.examine(p, chosen)
	if err != nil || mask == nil || c.complete(mask) {
		return chosen, err
	}
	call, err := c.probing(p)
	if err != nil {
		return nil, err
	}
	for i := range heads {
		heads[i].Sequence -= p.First
	}
	selection, err := call.enforce(c.ctx, &core.Selection{Mask: mask.Broadcast(c.Heads), Heads: heads, Reason: chosen.Reason})
	if err != nil {
		return nil, err
	}
	topped := call.forDevice(p, selection)
	topped.Judges = chosen.Judges
	return topped, nil
}

// probing is a part as a call that has no session, but a device to measure.
func (c *DeviceCall) probing(p *Part) (*Call, error) {
	if size := c.Params.Int("block_size"); c.Params.IsSet("block_size") && size%cuda.Tile != 0 {
		return nil, c.Unsupported("block_size %d, not a multiple of %d,", size, cuda.Tile)
	}
	c.Note("blocks were chosen on the host, by rows that the device measured")
	req := c.partRequest(p)
	shapes := [2]*tensor.Tensor{}
	for i, t := range []cuda.Tensor{p.ArrivedQuery, p.ArrivedKey} {
		at := uintptr(t.Data)
		var err error
		shapes[i], err = tensor.Borrow(*(*unsafe.Pointer)(unsafe.Pointer(&at)), c.Request.Query.Dtype(),
			[]int64{int64(t.Batch), int64(t.Heads), int64(t.Rows), int64(t.Dim)}, []int64{t.StrideB, t.StrideH, t.Stride, 1}, c.Request.Query.Device())
		if err != nil {
			return nil, core.Errorf(core.ErrInternal, "%w", err)
		}
	}
	req.Query, req.Key, req.Value = shapes[0], shapes[1], shapes[1]
	call := &Call{Request: req, Params: c.Params, Heads: c.Heads, info: c.info, kernel: &Kernel{backend: c.kernel.backend}}
	call.Problem = &hardware.Problem{Scale: req.Scale, Causal: req.Causal, Window: req.Window, Softcap: req.Softcap,
		Sinks: req.Sinks, Positions: positions(req.Position), Threads: req.Threads}
	for range p.Count {
		call.Problem.Sequences = append(call.Problem.Sequences, hardware.Sequence{
			Query: sized(p.ArrivedQuery), Key: sized(p.ArrivedKey), Value: sized(p.ArrivedKey), Offset: p.Offset})
	}
	call.Prober = deviceProber{c, p}
	call.measured = make([]measurement, p.Count*c.Heads)
	return call, nil
}

// sized is matrices of the device's shapes, without their data.
func sized(t cuda.Tensor) []hardware.Matrix {
	all := make([]hardware.Matrix, t.Heads)
	for h := range all {
		all[h] = hardware.Matrix{Dtype: hardware.BFloat16, Rows: t.Rows, Cols: t.Dim, Stride: int(t.Stride)}
	}
	return all
}

// deviceProber measures a part on its device.
type deviceProber struct {
	call *DeviceCall
	part *Part
}

var _ hardware.Prober = deviceProber{}

func (d deviceProber) RowMass(ctx context.Context, sets []hardware.RowSet, blockSize int) ([]hardware.RowMass, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	rows, which := make([][]int32, len(sets)), make([]int32, len(sets))
	for i, set := range sets {
		rows[i], which[i] = set.Rows, int32(set.Sequence*d.call.Heads+set.Head)
	}
	table, count := probeTable(rows)
	measured, err := d.call.Work.RowMass(d.call.attention(d.part), cuda.RowSets{Sets: which, Rows: table, Count: count})
	if err != nil {
		return nil, err
	}
	mass, err := d.call.floats(measured.Mass, len(table)*measured.KeyTiles)
	if err != nil {
		return nil, err
	}
	lse, err := d.call.floats(measured.LSE, len(table))
	if err != nil {
		return nil, err
	}
	all := make([]hardware.RowMass, len(sets))
	for i, set := range sets {
		first := i * count
		all[i].LSE = lse[first : first+len(set.Rows)]
		all[i].Mass = joinTiles(mass[first*measured.KeyTiles:(first+len(set.Rows))*measured.KeyTiles], measured.KeyTiles, blockSize/cuda.Tile)
	}
	return all, nil
}

// joinTiles adds up each ratio of the tiles of a row.
func joinTiles(mass []float32, tiles, ratio int) []float32 {
	if ratio == 1 {
		return mass
	}
	blocks := ceilDiv(tiles, ratio)
	joined := make([]float32, len(mass)/tiles*blocks)
	for i, m := range mass {
		joined[i/tiles*blocks+i%tiles/ratio] += m
	}
	return joined
}

func (d deviceProber) Pool(ctx context.Context, query bool, blockSize, every int) ([]hardware.Pooled, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t, offset := d.part.ArrivedKey, 0
	if query {
		t, offset = d.part.ArrivedQuery, d.part.Offset
	}
	step := hardware.PoolStep(offset, every)
	t.Rows, t.Stride = ceilDiv(t.Rows, step), t.Stride*int64(step)
	at, blocks, err := d.call.Work.Pool(t, d.call.Half, offset/step, blockSize/step)
	if err != nil {
		return nil, err
	}
	means, err := d.call.floats(at, t.Batch*t.Heads*blocks*t.Dim)
	if err != nil {
		return nil, err
	}
	all := make([]hardware.Pooled, t.Batch*t.Heads)
	for i := range all {
		all[i] = hardware.Pooled{Blocks: blocks, Dim: t.Dim, Data: means[i*blocks*t.Dim : (i+1)*blocks*t.Dim]}
	}
	return all, nil
}

// floats reads numbers of the device; it waits.
func (c *DeviceCall) floats(at cuda.Address, count int) ([]float32, error) {
	numbers := make([]float32, count)
	if count == 0 {
		return numbers, nil
	}
	return numbers, c.Work.Download(unsafe.Slice((*byte)(unsafe.Pointer(&numbers[0])), 4*count), at)
}
