package checkpoint

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
)

const configName = "config.json"

// ConfigDifference is a key of config.json that has not the same value in every
// checkpoint.
type ConfigDifference struct {
	Key    string            // dotted for nested objects: rope_scaling.factor
	Values []json.RawMessage // one per checkpoint; nil where the key is absent
	Benign bool              // changes neither the model's shape nor its arithmetic
}

// benignKeys say how a checkpoint was saved or is sampled, not what the model is.
var benignKeys = [...]string{
	"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache",
	"bos_token_id", "eos_token_id", "pad_token_id", "output_attentions", "output_hidden_states",
}

// CompareConfigs lists the keys in which the folders' config.json differ, sorted.
// Values are compared as JSON values: 1e-5 equals 0.00001.
func CompareConfigs(dirs []string) ([]ConfigDifference, error) {
	flat := make([]map[string]any, len(dirs))
	keys := map[string]bool{}
	for i, dir := range dirs {
		config, err := readConfig(dir)
		if err != nil {
			return nil, err
		}
		flat[i] = map[string]any{}
		flatten(flat[i], "", config)
		for key := range flat[i] {
			keys[key] = true
		}
	}
	var out []ConfigDifference
	for key := range keys {
		if d, differs := compareKey(key, flat); differs {
			out = append(out, d)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out, nil
}

func compareKey(key string, flat []map[string]any) (ConfigDifference, bool) {
	d := ConfigDifference{Key: key, Benign: slices.Contains(benignKeys[:], key)}
	differs := false
	first, inFirst := flat[0][key]
	for _, config := range flat {
		value, ok := config[key]
		differs = differs || ok != inFirst || !reflect.DeepEqual(value, first)
		var raw json.RawMessage
		if ok {
			raw = quote(value)
		}
		d.Values = append(d.Values, raw)
	}
	return d, differs
}

// flatten writes the leaves of config under dotted keys. Arrays are leaves.
func flatten(out map[string]any, prefix string, config map[string]any) {
	for key, value := range config {
		if nested, ok := value.(map[string]any); ok && len(nested) > 0 {
			flatten(out, prefix+key+".", nested)
			continue
		}
		out[prefix+key] = value
	}
}

func readConfig(dir string) (map[string]any, error) {
	path := filepath.Join(dir, configName)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, system("read", path, err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, &Error{Op: "read", File: path, Reason: "not a JSON object: " + err.Error(), Err: ErrFormat}
	}
	return config, nil
}

// tiesEmbeddings reports whether the config says so; silence is a no.
func tiesEmbeddings(dir string) (bool, error) {
	if !exists(filepath.Join(dir, configName)) {
		return false, nil
	}
	config, err := readConfig(dir)
	tied, _ := config["tie_word_embeddings"].(bool)
	return tied, err
}
