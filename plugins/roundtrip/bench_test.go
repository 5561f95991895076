package roundtrip

import (
	"slices"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// BenchmarkCall is the cost of a call of which the plugin does nearly nothing.
func BenchmarkCall(b *testing.B) {
	for _, size := range []struct {
		name string
		rows int64
	}{{"1KB", 4}, {"256MB", 1 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			h, engine := start(b, host.Options{})
			req := &core.AttentionRequest{
				Query: shared(b, h.Pool(), 1, 1, size.rows, 64), Key: shared(b, h.Pool(), 1, 1, size.rows, 64),
				Value: shared(b, h.Pool(), 1, 1, size.rows, 64), Output: shared(b, h.Pool(), 1, 1, size.rows, 64),
				Causal: true, Params: core.Params{"behaviour": "nothing"},
			}
			took := make([]time.Duration, 0, b.N)
			for range 200 {
				if _, err := engine.Attend(b.Context(), "identity", req); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				began := time.Now()
				if _, err := engine.Attend(b.Context(), "identity", req); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)/10].Microseconds()), "p10-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}
