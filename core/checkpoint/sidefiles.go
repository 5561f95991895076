package checkpoint

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// SideFiles names what lies in the folder besides weights and belongs to the model.
func SideFiles(dir string) ([]string, error) {
	items, err := os.ReadDir(dir)
	if err != nil {
		return nil, system("copy", dir, err)
	}
	var names []string
	for _, item := range items {
		if isSideFile(item.Name()) && !item.IsDir() {
			names = append(names, item.Name())
		}
	}
	return names, nil
}

// CopySideFiles stages the side files of the folder source, byte for byte, and
// returns their names.
func (w *Writer) CopySideFiles(source string) ([]string, error) {
	names, err := SideFiles(source)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		path := filepath.Join(source, name)
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, system("copy", path, err)
		}
		if err := w.WriteFile(name, data); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// WriteFile stages a side file (a config, a model card) for Commit. Its bytes are on
// the disk when it returns. Staged twice, the last wins.
func (w *Writer) WriteFile(name string, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	path := filepath.Join(w.dir, name)
	if !plainName(name) || strings.Contains(name, ".safetensors") || strings.HasPrefix(name, ".trivium-") {
		return &Error{Op: "write", File: path, Reason: "not the name of a side file", Hint: "use a plain file name other than the weights' and the index's"}
	}
	if err := w.stage(name, data); err != nil {
		return err
	}
	if !slices.Contains(w.side, name) {
		w.side = append(w.side, name)
	}
	return nil
}

func (w *Writer) stage(name string, data []byte) error {
	path := filepath.Join(w.dir, partial(name))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return system("write", path, err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return system("write", path, err)
	}
	if w.volatile {
		return nil
	}
	if err := f.Sync(); err != nil {
		return system("write", path, err)
	}
	return nil
}
