package position

import "github.com/trivium-ml/trivium/core"

// RoPE leaves queries and keys as the model rotated them (arXiv 2104.09864).
func RoPE() core.PositionStrategy {
	return newScheme(core.Info{
		Name:       "rope",
		Summary:    "true positions, as the model rotated them",
		Paper:      "arXiv:2104.09864",
		Parameters: []core.Parameter{},
	}, func(req *core.PositionRequest) (*core.PositionPlan, error) { return plain(req), nil })
}
