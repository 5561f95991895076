package checkpoint

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// index is model.safetensors.index.json as it was when it was read.
type index struct {
	path    string
	info    os.FileInfo
	weights map[string]string // tensor name -> shard's file name
}

func readIndex(path string) (*index, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, system("read", path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, system("read", path, err)
	}
	weights, err := parseIndex(text, extensionOf(path))
	if err != nil {
		return nil, inFile(err, path)
	}
	return &index{path: path, info: info, weights: weights}, nil
}

// unchanged wants the file that was read to be there still.
func (x *index) unchanged() error {
	now, err := os.Stat(x.path)
	if err == nil && os.SameFile(now, x.info) && now.ModTime().Equal(x.info.ModTime()) {
		return nil
	}
	return &Error{Op: "read", File: x.path, Reason: "the checkpoint was replaced while it was being opened", Hint: "open it again", Err: ErrInProgress}
}

// extensionOf is that of the shards an index names.
func extensionOf(path string) string {
	if filepath.Base(path) == torchIndexName {
		return ".bin"
	}
	return ".safetensors"
}

func parseIndex(text []byte, extension string) (map[string]string, error) {
	if !json.Valid(text) || !utf8.Valid(text) {
		return nil, malformed("", "not JSON")
	}
	var weights map[string]string
	s := &scanner{text: text}
	err := s.object(func(key string) error {
		if key != "weight_map" {
			return s.skip()
		}
		weights = map[string]string{}
		return s.object(func(tensor string) error {
			shard, err := s.string()
			if err == nil && (!plainName(shard) || !strings.HasSuffix(shard, extension)) {
				err = s.errorf("tensor %q is said to be in %q: want the name of a %s file in this folder", tensor, shard, extension)
			}
			weights[tensor] = shard
			return err
		})
	})
	if err != nil {
		return nil, malformed("", "%v", err)
	}
	if len(weights) == 0 {
		return nil, malformed("", "weight_map is missing or empty")
	}
	return weights, nil
}

// encodeIndex writes an index as transformers does.
func encodeIndex(weights map[string]string, size int64) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(map[string]any{"metadata": map[string]int64{"total_size": size}, "weight_map": weights})
	return b.Bytes(), err
}

// plainName reports whether name stays inside its folder.
func plainName(name string) bool {
	return name != "" && name != "." && name != ".." && filepath.Base(name) == name && !strings.ContainsRune(name, 0)
}
