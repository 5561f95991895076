package cpu

// #include "support.h"
import "C"

import (
	"context"
	"math"
	"slices"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// variants are the distinct ways in which the bands take queries and keys.
type variants struct {
	positions   *hardware.Positions // nil: as they are
	query, key  []hardware.Rule
	bands       []C.trivium_band
	scale       float64
	half        int
	interleaved bool
}

func newVariants(p *hardware.Positions) variants {
	if p == nil {
		everything := C.trivium_band{chunk: 1, low: math.MinInt64, high: math.MaxInt64}
		return variants{query: []hardware.Rule{{Scale: 1}}, key: []hardware.Rule{{Scale: 1}}, bands: []C.trivium_band{everything}, scale: 1}
	}
	v := variants{positions: p, scale: p.Scale, half: len(p.InvFreq), interleaved: p.Interleaved}
	for _, b := range p.Bands {
		v.bands = append(v.bands, C.trivium_band{
			chunk: C.int64_t(max(b.Chunk, 1)), low: C.int64_t(b.Low), high: C.int64_t(b.High),
			query: C.int32_t(indexOf(&v.query, b.Query)), key: C.int32_t(indexOf(&v.key, b.Key)),
		})
	}
	return v
}

func indexOf(rules *[]hardware.Rule, r hardware.Rule) int {
	if i := slices.Index(*rules, r); i >= 0 {
		return i
	}
	*rules = append(*rules, r)
	return len(*rules) - 1
}

// turns says by how much a rule turns rows that are already rotated.
type turns uint8

const (
	turnsNothing turns = iota
	turnsAlike         // all rows by the same angles
	turnsEach          // each row by its own
)

func (v *variants) turns(r hardware.Rule) turns {
	if v.positions == nil || v.half == 0 {
		return turnsNothing
	}
	if !slices.Equal(v.positions.InvFreq, v.positions.Applied) || r.Modulo != 0 || r.Group > 1 || r.Scale != 1 || r.Limit != 0 {
		return turnsEach
	}
	if r.Offset == 0 {
		return turnsNothing
	}
	return turnsAlike
}

// rotationTable is a job: the rotations of rows at [position, position+rows).
type rotationTable struct {
	rule           hardware.Rule
	position, rows int
}

// rotate makes the tables of extra rotations, one for all heads that share it.
func (s *session) rotate(ctx context.Context, v variants) error {
	made := map[rotationTable]*C.float{}
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		query, err := s.rotations(&v, v.query, made, q.Offset, q.Query[0].Rows)
		if err != nil {
			return err
		}
		key, err := s.rotations(&v, v.key, made, 0, q.Key[0].Rows)
		if err != nil {
			return err
		}
		for h := range s.heads[i] {
			s.heads[i][h].rotation = query
		}
		for h := range s.keys[i] {
			s.keys[i][h].rotation = key
		}
	}
	return s.fillTables(ctx, &v, made)
}

func (s *session) rotations(v *variants, rules []hardware.Rule, made map[rotationTable]*C.float, position, rows int) (*C.trivium_rotation, error) {
	list, err := array[C.trivium_rotation](&s.memory, len(rules))
	if err != nil {
		return nil, err
	}
	for i, r := range rules {
		t := rotationTable{r, position, rows}
		switch v.turns(r) {
		case turnsNothing:
			continue
		case turnsAlike:
			t.position, t.rows = 0, 1
		case turnsEach:
			list[i].step = C.int64_t(2 * v.half)
		}
		if made[t] == nil {
			table, err := s.memory.alloc(C.size_t(2*v.half*t.rows) * C.sizeof_float)
			if err != nil {
				return nil, err
			}
			made[t] = (*C.float)(table)
		}
		list[i].table = made[t]
	}
	return &list[0], nil
}

func (s *session) fillTables(ctx context.Context, v *variants, made map[rotationTable]*C.float) error {
	if len(made) == 0 {
		return nil
	}
	frequencies, err := array[C.double](&s.memory, 2*v.half)
	if err != nil {
		return err
	}
	for i, f := range v.positions.InvFreq {
		frequencies[i], frequencies[v.half+i] = C.double(f), C.double(v.positions.Applied[i])
	}
	const chunk = 64
	type part struct {
		table    rotationTable
		row      int
		to       *C.float
		lastRows int
	}
	var parts []part
	for t, to := range made {
		for row := 0; row < t.rows; row += chunk {
			at := (*C.float)(unsafe.Add(unsafe.Pointer(to), row*2*v.half*4))
			parts = append(parts, part{t, row, at, min(chunk, t.rows-row)})
		}
	}
	return forEach(ctx, threadCount(s.request.Threads, len(parts)), len(parts), func(_, i int) {
		part, r := &parts[i], &parts[i].table.rule
		rule := C.trivium_rule{
			inv_freq: &frequencies[0], applied: &frequencies[v.half], half: C.int32_t(v.half),
			scale: C.double(r.Scale), offset: C.double(r.Offset), limit: C.double(r.Limit),
			modulo: C.int64_t(r.Modulo), group: C.int64_t(r.Group),
		}
		C.trivium_rotation_rows(&rule, C.int64_t(part.table.position+part.row), C.int64_t(part.lastRows), part.to)
	})
}
