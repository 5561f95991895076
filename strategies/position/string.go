package position

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

// String shifts far positions into the range that training has seen often
// (STRING, arXiv 2410.18745). Pairs at a distance below S keep it; beyond, the
// distance is less by S - W. Only queries turn, by one constant, so keys and
// caches stay as they are, whatever S and W are from one call to the next.
func String() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "string",
		Summary: "distances from S on are less by S - W, so that none is longer than training has seen well",
		Paper:   "arXiv:2410.18745",
		Parameters: []core.Parameter{
			trainLengthParameter(),
			{Name: "shift", Type: core.Int, Unit: "tokens", Min: core.Bound(1), Doc: "S: distance from which positions shift; unset: a third of train_length"},
			{Name: "local", Type: core.Int, Default: int64(128), Unit: "tokens", Min: core.Bound(0), Doc: "W: distance that S becomes; the paper wants at least 32"},
			{Name: "attention_factor", Type: core.Float, Min: core.Bound(0), OpenMin: true, Doc: "scale of cosines and sines; unset: 1, or .1 ln 2 + 1 as compat says"},
			{Name: "compat", Type: core.String, Default: "paper", Choices: []string{"paper", "released"}, Doc: "released: as the released code, cosines and sines times .1 ln 2 + 1, and pairs at distance S twice in prefill"},
		},
		Notes: []string{
			"Prompts of at most S tokens are exactly plain attention (with attention_factor 1).",
			"The released code counts pairs at distance S twice in prefill, at S and at W, and once in decoding. compat released does so too, on a CPU, to compare; blocks are chosen and coverage is measured as if they counted once.",
		},
	}, planString)
}

// releasedAttentionFactor is what the released code scales by, for a model
// stretched to twice its length.
const releasedAttentionFactor = 0.1*math.Ln2 + 1

func planString(req *core.PositionRequest) (*core.PositionPlan, error) {
	shift := int64(req.Params.Int("shift"))
	if !req.Params.IsSet("shift") {
		length, err := trainLength(req, "string")
		if err != nil {
			return nil, err
		}
		shift = max(1, length/3)
	}
	local := int64(req.Params.Int("local"))
	if local > shift {
		return nil, core.Invalid("position.string", "local %d, shift %d: want local <= shift, or distances grow", local, shift)
	}
	plan := plain(req)
	switch {
	case req.Params.IsSet("attention_factor"):
		plan.AttentionScale = req.Params.Float("attention_factor")
	case req.Params.Text("compat") == "released":
		plan.AttentionScale = releasedAttentionFactor
	}
	plan.Bands = nearAndFar(shift, core.Shift(float64(local-shift)), core.Identity())
	if req.Params.Text("compat") == "released" {
		plan.Twice = shift
	}
	return plan, nil
}
