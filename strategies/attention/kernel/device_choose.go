package kernel

import "github.com/trivium-ml/trivium/hardware/cuda"

// Chunk is a part for selectors that judge queries and keys as they arrived, at
// their true positions.
func (c *DeviceCall) Chunk(p *Part) cuda.Chunk {
	r := c.Request
	return cuda.Chunk{Query: p.ArrivedQuery, Key: p.ArrivedKey, Half: c.Half, Scale: float32(r.Scale),
		Softcap: float32(r.Softcap), Offset: p.Offset, Window: int(r.Window)}
}

// PerHead is a number for each query head.
func (c *DeviceCall) PerHead(name string) []float32 {
	all := make([]float32, c.Heads)
	for h := range all {
		all[h] = float32(c.Params.FloatAt(name, h))
	}
	return all
}

// Tiled says whether the strategy's blocks are the tiles of the device.
func (c *DeviceCall) Tiled() bool { return c.Params.Int("block_size") == cuda.Tile }
