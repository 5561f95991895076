package kernel

import (
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

// Means are mean rows and where they stand: the position in the middle of the
// rows of each.
type Means struct {
	hardware.Pooled
	Position []int64
}

// QueryMeans says where the mean queries of a head's blocks stand.
func (c *Call) QueryMeans(sequence, blockSize int, pooled hardware.Pooled) Means {
	s := &c.Problem.Sequences[sequence]
	return standing(pooled, s.Offset, s.Query[0].Rows, blockSize)
}

// KeyMeans says where the mean keys of a head's blocks stand.
func (c *Call) KeyMeans(sequence, blockSize int, pooled hardware.Pooled) Means {
	return standing(pooled, 0, c.Problem.Sequences[sequence].Key[0].Rows, blockSize)
}

func standing(pooled hardware.Pooled, offset, rows, blockSize int) Means {
	m := Means{Pooled: pooled, Position: make([]int64, pooled.Blocks)}
	for b := range m.Position {
		block := offset/blockSize + b
		first, last := max(offset, block*blockSize), min(offset+rows, (block+1)*blockSize)-1
		m.Position[b] = int64(first+last) / 2
	}
	return m
}

// Similarity is the score of mean queries and mean keys, as the kernel scores
// single ones: scaled, capped, and at the positions of the band that the means
// stand in. Where visible says nothing is seen it is 0. A mean turns as a whole,
// which is exact where a band moves all positions alike, as STRING's do.
func (c *Call) Similarity(queries, keys Means, visible func(row int) (low, high int)) hardware.BlockScores {
	products := c.products(queries, keys)
	scale := c.Problem.Scale
	if c.Problem.Positions != nil {
		scale *= c.Problem.Positions.Scale
	}
	all := hardware.BlockScores{QueryBlocks: queries.Blocks, KeyBlocks: keys.Blocks, Score: make([]float32, queries.Blocks*keys.Blocks)}
	for i := range queries.Blocks {
		low, high := visible(i)
		row := all.Row(i)
		if len(products) == 1 && c.Problem.Softcap == 0 {
			product := products[0][i*keys.Blocks:]
			for j := low; j < high; j++ {
				row[j] = float32(scale * float64(product[j]))
			}
			continue
		}
		for j := low; j < high; j++ {
			band := 0
			if len(products) > 1 {
				band = c.band(queries.Position[i], keys.Position[j])
			}
			score := scale * float64(products[band][i*keys.Blocks+j])
			if limit := c.Problem.Softcap; limit > 0 {
				score = limit * math.Tanh(score/limit)
			}
			row[j] = float32(score)
		}
	}
	return all
}

// products is those of all means, at the positions of each band.
func (c *Call) products(queries, keys Means) [][]float32 {
	turnedQueries, turnedKeys := c.turn(queries, true), c.turn(keys, false)
	products := make([][]float32, len(turnedQueries))
	for band := range products {
		products[band] = c.kernel.backend.Dots(hardware.Pooled{Blocks: queries.Blocks, Dim: queries.Dim, Data: turnedQueries[band]},
			hardware.Pooled{Blocks: keys.Blocks, Dim: keys.Dim, Data: turnedKeys[band]})
	}
	return products
}

// band is the index of the band of a pair of positions.
func (c *Call) band(m, n int64) int {
	return max(0, c.Request.Position.Band(m, n))
}

// turn gives the means at the positions of each band.
func (c *Call) turn(m Means, query bool) [][]float32 {
	p := c.Problem.Positions
	if p == nil {
		return [][]float32{m.Data}
	}
	turned := make([][]float32, len(p.Bands))
	for b, band := range c.Request.Position.Bands {
		rule := band.Key
		if query {
			rule = band.Query
		}
		turned[b] = append([]float32(nil), m.Data...)
		for i, position := range m.Position {
			rotate(p, turned[b][i*m.Dim:(i+1)*m.Dim], float64(position), rule.Position(position))
		}
	}
	return turned
}

// rotate takes a row from the rotation it arrived with to that of position wanted.
func rotate(p *hardware.Positions, row []float32, applied, wanted float64) {
	half := len(p.InvFreq)
	for f := range half {
		a, b := f, f+half
		if p.Interleaved {
			a, b = 2*f, 2*f+1
		}
		sin, cos := math.Sincos(p.InvFreq[f]*wanted - p.Applied[f]*applied)
		x, y := float64(row[a]), float64(row[b])
		row[a], row[b] = float32(x*cos-y*sin), float32(y*cos+x*sin)
	}
}
