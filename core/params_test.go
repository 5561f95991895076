package core

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var sample = Info{Name: "sample", Kind: Attention, Parameters: []Parameter{
	{Name: "gamma", Type: Float, Default: 0.9, Min: Bound(0), OpenMin: true, Max: Bound(1), PerHead: true},
	{Name: "min_budget", Type: Int, Default: int64(512), Min: Bound(0), Optional: true},
	{Name: "max_budget", Type: Int, Default: nil, Min: Bound(1)},
	{Name: "rule", Type: String, Default: "fixed", Choices: []string{"fixed", "released", "paper"}},
	{Name: "strict", Type: Bool, Default: false},
	{Name: "weights", Type: Floats, Default: nil},
}}

func TestValidate(t *testing.T) {
	cases := []struct {
		name  string
		given Params
		want  Params
	}{
		{"defaults", nil, Params{"gamma": 0.9, "min_budget": int64(512), "max_budget": nil, "rule": "fixed", "strict": false, "weights": nil}},
		{"integer for a float", Params{"gamma": int64(1)}, Params{"gamma": 1.0}},
		{"whole float for an integer", Params{"min_budget": 64.0}, Params{"min_budget": int64(64)}},
		{"nil is the default", Params{"gamma": nil}, Params{"gamma": 0.9}},
		{"nil unsets what may be unset", Params{"min_budget": nil}, Params{"min_budget": nil}},
		{"a value per head", Params{"gamma": []any{0.5, 0.9}}, Params{"gamma": []float64{0.5, 0.9}}},
		{"list", Params{"weights": []any{1.0, int64(2)}}, Params{"weights": []float64{1, 2}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := sample.Validate(c.given, 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(sample.Parameters) {
				t.Fatalf("got %d parameters, want %d", len(got), len(sample.Parameters))
			}
			for name, want := range c.want {
				if !reflect.DeepEqual(got[name], want) {
					t.Errorf("%s: got %v, want %v", name, got[name], want)
				}
			}
		})
	}
}

func TestValidateRefuses(t *testing.T) {
	cases := []struct {
		name  string
		given Params
		says  string
	}{
		{"unknown", Params{"gama": 0.9}, `did you mean "gamma"?`},
		{"nothing near", Params{"q": 1.0}, "it takes gamma, min_budget"},
		{"open bound", Params{"gamma": 0.0}, "want (0, 1]"},
		{"NaN", Params{"gamma": math.NaN()}, "finite"},
		{"infinity", Params{"min_budget": math.Inf(1)}, "want an integer"},
		{"fraction for an integer", Params{"min_budget": 0.5}, "want an integer"},
		{"text for a number", Params{"gamma": "high"}, "want a number"},
		{"choice", Params{"rule": "fixd"}, `did you mean "fixed"?`},
		{"number for a switch", Params{"strict": 1.0}, "true or false"},
		{"wrong number of heads", Params{"gamma": []any{0.5}}, "2 query heads"},
		{"bad value in a list", Params{"gamma": []any{0.5, 2.0}}, "want (0, 1]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := sample.Validate(c.given, 2)
			if !errors.Is(err, &Error{Kind: ErrInvalidArgument}) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want invalid_argument that says %q", err, c.says)
			}
			if !strings.HasPrefix(err.Error(), "attention.sample: ") {
				t.Errorf("%q does not name the strategy", err)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	names := []string{"dense", "flexprefill", "streaming", "custom"}
	cases := map[string]string{"flexprefil": "flexprefill", "FlexPrefill": "flexprefill", "flex": "flexprefill", "dens": "dense", "zzz": "", "x": ""}
	for typed, want := range cases {
		if got := Nearest(typed, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}

func TestEditDistanceIsAMetric(t *testing.T) {
	word := rapid.StringMatching(`[abc]{0,6}`)
	rapid.Check(t, func(rt *rapid.T) {
		a, b, c := word.Draw(rt, "a"), word.Draw(rt, "b"), word.Draw(rt, "c")
		if (editDistance(a, b) == 0) != (a == b) {
			rt.Fatalf("distance of %q and %q is %d", a, b, editDistance(a, b))
		}
		if editDistance(a, b) != editDistance(b, a) {
			rt.Fatal("not symmetric")
		}
		if editDistance(a, c) > editDistance(a, b)+editDistance(b, c) {
			rt.Fatal("a detour is shorter")
		}
	})
}
