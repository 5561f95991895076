package cpu

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/hardware"
)

func TestOpenUnknown(t *testing.T) {
	_, err := Open("sse9")
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Want != "sse9" || len(unavailable.Available) == 0 {
		t.Fatalf("error %v: want one that lists what there is", err)
	}
	names := Available()
	if names[len(names)-1] != "serial" {
		t.Errorf("available %v: want serial last", names)
	}
	best, err := Open("")
	if err != nil || best.Name() != "cpu:"+names[0] {
		t.Errorf("best is %v, %v: want %s", best, err, names[0])
	}
}

// dense is one sequence of n queries and keys.
func denseCase(n, heads, dim int) *randomCase {
	r := rand.New(rand.NewPCG(5, 5))
	c := &randomCase{seed: 5}
	c.problem.Scale, c.problem.Causal = 0.1, true
	q := hardware.Sequence{}
	c.query, c.key, c.value, c.out = [][]*buffer{nil}, [][]*buffer{nil}, [][]*buffer{nil}, [][]*buffer{nil}
	for range heads {
		for _, list := range []struct {
			to   *[]*buffer
			view *[]hardware.Matrix
		}{{&c.query[0], &q.Query}, {&c.key[0], &q.Key}, {&c.value[0], &q.Value}, {&c.out[0], &q.Output}} {
			b := newBuffer(r, hardware.Float32, n, dim, dim, 1)
			*list.to, *list.view = append(*list.to, b), append(*list.view, b.Matrix)
		}
		q.LSE = append(q.LSE, make([]float32, n))
	}
	c.problem.Sequences = []hardware.Sequence{q}
	return c
}

func TestCancelReturnsSoon(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		c := denseCase(6000, 2, 128)
		s := c.prepare(t, b)
		defer s.Close()
		calls := map[string]func(context.Context) error{
			"attend":         func(ctx context.Context) error { return s.Attend(ctx, nil) },
			"representative": func(ctx context.Context) error { _, err := s.Representative(ctx, 6000); return err },
		}
		for name, call := range calls {
			ctx, cancel := context.WithCancel(context.Background())
			var cancelled time.Time
			time.AfterFunc(30*time.Millisecond, func() { cancelled = time.Now(); cancel() })
			err := call(ctx)
			late := time.Since(cancelled)
			if err == nil {
				t.Logf("%s: done before it could be cancelled", name)
				continue
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: error %v: want context.Canceled", name, err)
			}
			t.Logf("%s: returned %v after cancel", name, late)
			if late > 500*time.Millisecond { // 50 ms with a processor of its own
				t.Errorf("%s: returned %v after cancel", name, late)
			}
		}
		if err := s.Attend(cancelledContext(), nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v of a call cancelled before: want context.Canceled", err)
		}
		if _, err := b.Prepare(cancelledContext(), &c.problem); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v of Prepare cancelled before: want context.Canceled", err)
		}
	})
}

func cancelledContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestAttendAfterCancel(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		c := newCase(3)
		s := c.prepare(t, b)
		defer s.Close()
		if err := s.Attend(cancelledContext(), c.masks); err == nil {
			t.Fatal("cancelled call reports success")
		}
		if err := s.Attend(context.Background(), c.masks); err != nil {
			t.Fatal(err)
		}
		c.compareRows(t, isa, c.sample(), worst{}, worst{})
	})
}

// Allocations do not grow with the number of tiles.
func TestAttendAllocations(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		count := func(n int) float64 {
			c := denseCase(n, 2, 16)
			c.problem.Threads = 2
			s := c.prepare(t, b)
			defer s.Close()
			return testing.AllocsPerRun(3, func() {
				if err := s.Attend(context.Background(), nil); err != nil {
					t.Fatal(err)
				}
			})
		}
		few, many := count(256), count(2048)
		if many > few+8 || few > 40 { // a slice grows a few times
			t.Errorf("%g allocations for 256 rows, %g for 2048: want the same few", few, many)
		}
	})
}

func positions(frequencies, applied, bands int) *hardware.Positions {
	return &hardware.Positions{InvFreq: make([]float64, frequencies), Applied: make([]float64, applied), Bands: make([]hardware.Band, bands)}
}

func TestPrepareRefuses(t *testing.T) {
	cases := []struct {
		name, want string
		spoil      func(p *hardware.Problem)
	}{
		{"no sequences", "no sequences", func(p *hardware.Problem) { p.Sequences = nil }},
		{"scale 0", "scale", func(p *hardware.Problem) { p.Scale = 0 }},
		{"wide heads", "head_dim", func(p *hardware.Problem) { p.Sequences[0].Key[0].Cols = 257 }},
		{"heads", "multiple", func(p *hardware.Problem) {
			p.Sequences[0].Key = append(p.Sequences[0].Key, p.Sequences[0].Key[0])
		}},
		{"sinks", "sinks", func(p *hardware.Problem) { p.Sinks = []float32{1} }},
		{"output rows", "output head 1", func(p *hardware.Problem) { p.Sequences[0].Output[1].Rows-- }},
		{"lse", "lse of head 0", func(p *hardware.Problem) { p.Sequences[0].LSE[0] = make([]float32, 3) }},
		{"nil data", "value head 0", func(p *hardware.Problem) { p.Sequences[0].Value[0].Data = nil }},
		{"frequencies", "frequencies", func(p *hardware.Problem) { p.Positions = positions(9, 9, 1) }},
		{"applied", "frequencies", func(p *hardware.Problem) { p.Positions = positions(4, 3, 1) }},
		{"bands", "bands", func(p *hardware.Problem) { p.Positions = positions(4, 4, 0) }},
	}
	b, err := Open("serial")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := denseCase(20, 2, 16)
			c.spoil(&d.problem)
			s, err := b.Prepare(context.Background(), &d.problem)
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q: want one about %q", err, c.want)
			}
		})
	}
}

func TestAttendRefusesMasks(t *testing.T) {
	cases := []struct {
		name string
		mask hardware.Blocks
	}{
		{"size", hardware.Blocks{Size: 24, RowPtr: []int64{0, 0}}},
		{"rows", hardware.Blocks{Size: 16, RowPtr: []int64{0, 0}}},
		{"columns", hardware.Blocks{Size: 32, RowPtr: []int64{0, 1}, Columns: []int32{1}}},
		{"falling", hardware.Blocks{Size: 16, RowPtr: []int64{0, 2, 1}, Columns: []int32{0, 1}}},
		{"order", hardware.Blocks{Size: 16, RowPtr: []int64{0, 0, 2}, Columns: []int32{1, 0}}},
		{"beyond", hardware.Blocks{Size: 16, RowPtr: []int64{0, 0, 3}, Columns: []int32{0}}},
	}
	b, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	d := denseCase(20, 1, 16)
	s := d.prepare(t, b)
	defer s.Close()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := s.Attend(context.Background(), []hardware.Blocks{c.mask}); err == nil {
				t.Error("no error")
			}
		})
	}
	if err := s.Attend(context.Background(), make([]hardware.Blocks, 2)); err == nil {
		t.Error("two masks for one head: no error")
	}
}
