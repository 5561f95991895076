// Package strategies holds the built-in strategies. Lists of them are derived
// from the folders, never kept by hand:
//
//   - attention/<id>/ is a strategy when its package has
//     func New(*kernel.Kernel) core.AttentionStrategy; the shared runner,
//     attention/kernel, has no such function of one *Kernel.
//   - position/<id>.go is a strategy when it has a function without parameters,
//     named as the file is but for case, that returns core.PositionStrategy:
//     longrope.go has LongRoPE.
//   - merge/<id>.go is a strategy when it has such a function of one
//     *tile.Runner that returns core.MergeStrategy: sma.go has SMA.
//
// A kernel.Kernel and a tile.Runner are made once per process, from one
// hardware.Backend, and shared by all strategies.
package strategies
