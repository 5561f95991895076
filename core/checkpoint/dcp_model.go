package checkpoint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// weightsOf picks the model's weights out of what a trainer saved, and says in
// words what it leaves out. With a key they are what lies below that dictionary.
// Else, by the first of these rules that fits:
//
//  1. a dictionary at the root called state_dict, model_state_dict, model or module;
//  2. the tensors at the root itself, if there are any;
//  3. such a dictionary in the only one at the root that has one (app.model).
//
// Names with dots in them, such as model.norm.weight, are no dictionaries: the
// metadata says which keys a name was made of. Where it does not, all tensors are
// taken but those whose names begin with optim or optimizer.
func weightsOf(items []dcpItem, key string) ([]dcpItem, []string, error) {
	if !slices.ContainsFunc(items, func(i dcpItem) bool { return !i.object }) {
		return nil, nil, &Error{Op: "read", Err: ErrMissing, Reason: "holds no tensors"}
	}
	prefix, err := prefixOf(items, key)
	if err != nil {
		return nil, nil, err
	}
	var weights []dcpItem
	left := map[string][2]int{} // tensors and objects, by the dictionary they are in
	var order []string
	for _, item := range items {
		name, ok := below(item, prefix, key != "")
		if ok && !item.object {
			item.name = name
			weights = append(weights, item)
			continue
		}
		group := item.path[0]
		if ok || len(item.path) == 1 {
			group = cmp.Or(strings.Join(prefix, "."), "the root")
		}
		if _, seen := left[group]; !seen {
			order = append(order, group)
		}
		n := left[group]
		if item.object {
			n[1]++
		} else {
			n[0]++
		}
		left[group] = n
	}
	if len(weights) == 0 {
		return nil, nil, &Error{Op: "read", Err: ErrMissing, Reason: "holds no tensors " + where(prefix), Hint: "name the dictionary of the weights (model_key); there are: " + strings.Join(groups(items), ", ")}
	}
	var ignored []string
	for _, group := range order {
		ignored = append(ignored, fmt.Sprintf("%d tensors and %d other objects in %s are not the model's weights and are left out", left[group][0], left[group][1], group))
	}
	return weights, ignored, nil
}

// below gives an item's name below a prefix. A key that the user named is a text
// before the name, whether or not the metadata says what dictionaries there were.
func below(item dcpItem, prefix []string, named bool) (string, bool) {
	if named {
		return strings.CutPrefix(item.name, strings.Join(prefix, ".")+".")
	}
	n := len(prefix)
	if n == 0 {
		return item.name, len(item.path) == 1 && !optimizers(item)
	}
	return strings.Join(item.path[min(n, len(item.path)):], "."), len(item.path) > n && slices.Equal(item.path[:n], prefix)
}

// optimizers says whether a name in one piece is that of an optimizer's state.
func optimizers(item dcpItem) bool {
	first, _, nested := strings.Cut(item.name, ".")
	return nested && strings.HasPrefix(first, "optim")
}

func where(prefix []string) string {
	if len(prefix) == 0 {
		return "at its root"
	}
	return "below " + strings.Join(prefix, ".")
}

func prefixOf(items []dcpItem, key string) ([]string, error) {
	if key = strings.Trim(key, "."); key != "" {
		return []string{key}, nil
	}
	if usual, ok := usualBelow(items, nil); ok {
		return usual, nil
	}
	var found [][]string
	for _, group := range groups(items) {
		if inner, ok := usualBelow(items, []string{group}); ok {
			found = append(found, inner)
		}
	}
	atRoot := slices.ContainsFunc(items, func(i dcpItem) bool { return !i.object && len(i.path) == 1 })
	switch {
	case atRoot:
		return nil, nil
	case len(found) == 1:
		return found[0], nil
	}
	return nil, &Error{Op: "read", Err: ErrMissing, Reason: "does not say which of its dictionaries holds the model's weights",
		Hint: "name it (model_key); there are: " + strings.Join(groups(items), ", ")}
}

// usualBelow looks for a dictionary with tensors that has a usual name.
func usualBelow(items []dcpItem, prefix []string) ([]string, bool) {
	for _, wanted := range modelKeys {
		path := append(slices.Clone(prefix), wanted)
		if slices.ContainsFunc(items, func(i dcpItem) bool {
			return !i.object && len(i.path) > len(path) && slices.Equal(i.path[:len(path)], path)
		}) {
			return path, true
		}
	}
	return nil, false
}

// groups lists the dictionaries at the root that have tensors.
func groups(items []dcpItem) []string {
	var names []string
	for _, item := range items {
		if name := item.path[0]; !item.object && len(item.path) > 1 && !slices.Contains(names, name) && len(names) < maxMismatches {
			names = append(names, name)
		}
	}
	return names
}
