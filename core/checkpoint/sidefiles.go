package checkpoint

import (
	"os"
	"path/filepath"
)

// sideFiles are the names, as patterns, of what a checkpoint folder holds besides
// weights: configuration, tokenizer, chat template, and code that the config names.
var sideFiles = [...]string{
	"config.json", "generation_config.json", "configuration_*.py", "modeling_*.py",
	"tokenizer*", "tokenization_*.py", "special_tokens_map.json", "added_tokens.json",
	"vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template*",
	"preprocessor_config.json", "processor_config.json",
}

func isSideFile(name string) bool {
	for _, pattern := range sideFiles {
		if ok, _ := filepath.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

// CopySideFiles stages the side files of the folder source, byte for byte, and
// returns their names.
func (w *Writer) CopySideFiles(source string) ([]string, error) {
	items, err := os.ReadDir(source)
	if err != nil {
		return nil, system("copy", source, err)
	}
	var names []string
	for _, item := range items {
		if !isSideFile(item.Name()) || item.IsDir() {
			continue
		}
		path := filepath.Join(source, item.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, system("copy", path, err)
		}
		if err := w.WriteFile(item.Name(), data); err != nil {
			return nil, err
		}
		names = append(names, item.Name())
	}
	return names, nil
}
