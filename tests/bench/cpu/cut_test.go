package cpu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cpu"
	"github.com/trivium-ml/trivium/strategies/merge"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// The mean of eight bfloat16 tensors of 4096 x 4096 in the page cache: in one piece,
// and cut over four ranks by rows, by columns and by both.
func BenchmarkCut(b *testing.B) {
	const n, sources = 4096, 8
	backend, err := cpu.Open("")
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		rows, columns int64
	}{{"one", 1, 1}, {"rows", 4, 1}, {"columns", 1, 4}, {"both", 2, 2}, {"columns64", 1, 64}} {
		b.Run(c.name, func(b *testing.B) {
			dir, t := b.TempDir(), core.MergeTensor{Name: "w", Shape: []int64{n, n}}
			for s := range sources {
				cut := &tensor.Cut{Item: 2, Shape: t.Shape}
				for p := range c.rows * c.columns {
					cut.Parts = append(cut.Parts, tensor.Part{File: filled(b, filepath.Join(dir, fmt.Sprint(s, "-", p)), 2*n*n/c.rows/c.columns),
						At: []int64{p / c.columns * (n / c.rows), p % c.columns * (n / c.columns)}, Shape: []int64{n / c.rows, n / c.columns}})
				}
				e := tensor.Extent{File: cut.Parts[0].File, Size: 2 * n * n, Cut: cut}
				if len(cut.Parts) == 1 {
					e.Cut = nil
				}
				t.Inputs = append(t.Inputs, core.MergeOperand{Dtype: tensor.BFloat16, Extent: e})
			}
			t.Outputs = []core.MergeOperand{{Dtype: tensor.BFloat16, Extent: tensor.Extent{File: filled(b, filepath.Join(dir, "out"), 2*n*n), Size: 2 * n * n, Writable: true}}}
			mean := merge.SMA(tile.New(backend))
			b.SetBytes(2 * n * n * (sources + 1))
			before := cpuTime(b)
			for b.Loop() {
				if _, err := mean.Merge(context.Background(), &core.MergeRequest{Sources: sources, Tensors: []core.MergeTensor{t}}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpuTime(b)-before)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

func filled(b *testing.B, path string, size int64) *os.File {
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i%7 + 56*(i%2))
	}
	if _, err := file.Write(data); err != nil {
		b.Fatal(err)
	}
	return file
}
