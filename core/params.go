package core

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Params holds parameter values by name: int64, float64, bool, string or
// []float64. After Validate every parameter of the strategy is present, with
// its default where the caller gave none; an unset one is nil.
type Params map[string]any

// Int reads an integer parameter, 0 when unset.
func (p Params) Int(name string) int { v, _ := p[name].(int64); return int(v) }

// IsSet says whether the parameter has a value.
func (p Params) IsSet(name string) bool { return p[name] != nil }

// Float reads a number, 0 when unset. Of a per-head list it is the first.
func (p Params) Float(name string) float64 { return p.FloatAt(name, 0) }

// FloatAt reads a number for one query head.
func (p Params) FloatAt(name string, head int) float64 {
	switch v := p[name].(type) {
	case float64:
		return v
	case []float64:
		if len(v) > 0 {
			return v[min(head, len(v)-1)]
		}
	}
	return 0
}

// Floats reads a list of numbers, nil when unset.
func (p Params) Floats(name string) []float64 { v, _ := p[name].([]float64); return v }

// Bool reads a switch.
func (p Params) Bool(name string) bool { v, _ := p[name].(bool); return v }

// Text reads a string parameter.
func (p Params) Text(name string) string { v, _ := p[name].(string); return v }

// Validate checks given against the parameters of info and returns a complete
// set with canonical types and defaults filled in. heads is the number of
// query heads a per-head list must have; 0 when it is not known.
func (i Info) Validate(given Params, heads int) (Params, error) {
	for name := range given {
		if _, ok := i.Parameter(name); !ok {
			return nil, i.unknownParameter(name)
		}
	}
	complete := make(Params, len(i.Parameters))
	for _, p := range i.Parameters {
		value, ok := given[p.Name]
		if value == nil {
			complete[p.Name] = p.whenNil(ok)
			continue
		}
		canonical, err := p.canonical(value, heads)
		if err != nil {
			return nil, Invalid(i.ID(), "%s: %s", p.Name, err).WithHint("see trivium.info(%q)", i.Name)
		}
		complete[p.Name] = canonical
	}
	return complete, nil
}

// whenNil is the value of a parameter that was given as nil, or not at all.
func (p Parameter) whenNil(given bool) any {
	if given && p.Optional {
		return nil
	}
	return p.Default
}

func (i Info) unknownParameter(name string) error {
	names := make([]string, len(i.Parameters))
	for k, p := range i.Parameters {
		names[k] = p.Name
	}
	err := Invalid(i.ID(), "unknown parameter %q", name)
	if near := Nearest(name, names); near != "" {
		return err.WithHint("did you mean %q?", near)
	}
	if len(names) == 0 {
		return err.WithHint("it takes no parameters")
	}
	return err.WithHint("it takes %s", strings.Join(names, ", "))
}

func (p Parameter) canonical(value any, heads int) (any, error) {
	if p.PerHead && p.Type == Float {
		if list, ok := toFloats(value); ok {
			if heads > 0 && len(list) != heads {
				return nil, fmt.Errorf("%d values: want one, or one for each of %d query heads", len(list), heads)
			}
			return list, p.checkAll(list)
		}
	}
	switch p.Type {
	case Int:
		number, ok := toFloat(value)
		if !ok || number != math.Trunc(number) || math.Abs(number) > 1<<53 {
			return nil, fmt.Errorf("%v: want an integer", value)
		}
		return int64(number), p.check(number)
	case Float:
		number, ok := toFloat(value)
		if !ok {
			return nil, fmt.Errorf("%v: want a number", value)
		}
		return number, p.check(number)
	case Floats:
		list, ok := toFloats(value)
		if !ok {
			return nil, fmt.Errorf("%v: want a list of numbers", value)
		}
		return list, p.checkAll(list)
	case Bool:
		if b, ok := value.(bool); ok {
			return b, nil
		}
		return nil, fmt.Errorf("%v: want true or false", value)
	case String:
		return p.text(value)
	}
	return nil, fmt.Errorf("parameter type %q is not known", p.Type)
}

func (p Parameter) text(value any) (any, error) {
	text, ok := value.(string)
	if !ok {
		return nil, fmt.Errorf("%v: want a string", value)
	}
	if len(p.Choices) == 0 || slices.Contains(p.Choices, text) {
		return text, nil
	}
	want := "want one of " + strings.Join(p.Choices, ", ")
	if near := Nearest(text, p.Choices); near != "" {
		want += fmt.Sprintf("; did you mean %q?", near)
	}
	return nil, fmt.Errorf("%q: %s", text, want)
}

func (p Parameter) checkAll(list []float64) error {
	for _, number := range list {
		if err := p.check(number); err != nil {
			return err
		}
	}
	return nil
}

func (p Parameter) check(number float64) error {
	if math.IsNaN(number) || math.IsInf(number, 0) {
		return fmt.Errorf("%g: want a finite number", number)
	}
	low := p.Min != nil && (number < *p.Min || p.OpenMin && number == *p.Min)
	high := p.Max != nil && (number > *p.Max || p.OpenMax && number == *p.Max)
	if low || high {
		return fmt.Errorf("%g: want %s", number, p.Range())
	}
	return nil
}

// Range writes the allowed interval in mathematical notation, "" when any
// number will do.
func (p Parameter) Range() string {
	if p.Min == nil && p.Max == nil {
		return ""
	}
	text := "(-inf"
	if p.Min != nil {
		text = bracket(p.OpenMin, "(", "[") + fmt.Sprintf("%g", *p.Min)
	}
	if p.Max == nil {
		return text + ", inf)"
	}
	return text + fmt.Sprintf(", %g", *p.Max) + bracket(p.OpenMax, ")", "]")
}

func bracket(open bool, yes, no string) string {
	if open {
		return yes
	}
	return no
}

func toFloat(value any) (float64, bool) {
	switch v := value.(type) {
	case float64:
		return v, true
	case float32:
		return float64(v), true
	case int64:
		return float64(v), true
	case int:
		return float64(v), true
	}
	return 0, false
}

func toFloats(value any) ([]float64, bool) {
	switch v := value.(type) {
	case []float64:
		return slices.Clone(v), true
	case []any:
		list := make([]float64, len(v))
		for i := range v {
			number, ok := toFloat(v[i])
			if !ok {
				return nil, false
			}
			list[i] = number
		}
		return list, true
	}
	return nil, false
}
