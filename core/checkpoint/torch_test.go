package checkpoint

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Pieces of pickles as torch.save writes them.
func text(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func global(module, name string) string { return "c" + module + "\n" + name + "\n" }

func integer(n int64) string {
	return "\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func tupleOf(items ...string) string { return "(" + strings.Join(items, "") + "t" }

func numbers(list ...int64) string {
	var items []string
	for _, n := range list {
		items = append(items, integer(n))
	}
	return tupleOf(items...)
}

func rebuilt(storage, key string, elements, offset int64, shape, strides string) string {
	id := tupleOf(text("storage"), global("torch", storage), text(key), text("cpu"), integer(elements)) + "Q"
	return global("torch._utils", "_rebuild_tensor_v2") + tupleOf(id, integer(offset), shape, strides, "\x89", global("collections", "OrderedDict")+")R") + "R"
}

func dictOf(items ...string) string { return "}(" + strings.Join(items, "") + "u" }

func pickleOf(body string) string { return "\x80\x02" + body + "." }

// torchFile writes an archive; the entries are stored, but those of deflated.
func torchFile(t testing.TB, entries map[string]string, deflated ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.pt")
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range entries {
		header := &zip.FileHeader{Name: "archive/" + name, Method: zip.Store}
		for _, d := range deflated {
			if d == name {
				header.Method = zip.Deflate
			}
		}
		w, err := z.CreateHeader(header)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const twelve = "abcdefghijklmnopqrstuvwx" // of two bytes each

func TestOpenTorch(t *testing.T) {
	tensors := dictOf(
		text("whole"), rebuilt("HalfStorage", "0", 12, 0, numbers(3, 4), numbers(4, 1)),
		text("rows"), rebuilt("HalfStorage", "0", 12, 4, numbers(2, 1, 4), numbers(4, 99, 1)),
		text("extra"), "N",
	)
	for name, body := range map[string]string{
		"plain": tensors, "of a trainer": dictOf(text("epoch"), integer(-3), text("optimizer"), global("os", "system")+tupleOf(text("true"))+"R", text("state_dict"), tensors),
	} {
		t.Run(name, func(t *testing.T) {
			f, err := OpenTorch(torchFile(t, map[string]string{"data.pkl": pickleOf(body), "data/0": twelve, "byteorder": "little"}), "")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if len(f.Tensors) != 2 {
				t.Fatalf("%d tensors, want 2", len(f.Tensors))
			}
			for i, want := range []string{twelve, twelve[8:]} {
				tensor := f.Tensors[i]
				got := make([]byte, tensor.Size)
				if err := tensor.read(got, 0); err != nil || tensor.Dtype != F16 || string(got) != want[:len(got)] {
					t.Errorf("%s: %v of %s, %q, %v", tensor.Name, tensor.Shape, tensor.Dtype, got, err)
				}
			}
		})
	}
}

func TestTorchRefusals(t *testing.T) {
	one := func(value string) string { return pickleOf(dictOf(text("w"), value)) }
	good := rebuilt("HalfStorage", "0", 12, 0, numbers(12), numbers(1))
	cases := []struct {
		name, pickle string
		cause        error
		tensor, says string
	}{
		{"a command", one(global("os", "system") + tupleOf(text("false")) + "R"), ErrFormat, "w", "os.system"},
		{"a command by its stack form", one(text("os") + text("system") + "\x93" + tupleOf(text("false")) + "R"), ErrFormat, "w", "os.system"},
		{"a transposed view", one(rebuilt("HalfStorage", "0", 12, 0, numbers(3, 4), numbers(1, 3))), ErrFormat, "w", "strides"},
		{"a view past the end", one(rebuilt("HalfStorage", "0", 12, 1, numbers(12), numbers(1))), ErrFormat, "w", "outside"},
		{"a negative offset", one(rebuilt("HalfStorage", "0", 12, -1, numbers(2), numbers(1))), ErrFormat, "w", "outside"},
		{"an offset that overflows", one(rebuilt("HalfStorage", "0", 12, 1<<62, numbers(2), numbers(1))), ErrFormat, "w", "outside"},
		{"a shape that overflows", one(rebuilt("HalfStorage", "0", 12, 0, numbers(1<<32, 1<<32), numbers(1<<32, 1))), ErrFormat, "w", "size"},
		{"a storage that is not there", one(rebuilt("HalfStorage", "7", 12, 0, numbers(1), numbers(1))), ErrMissing, "w", "data/7"},
		{"a complex tensor", one(rebuilt("ComplexFloatStorage", "0", 12, 0, numbers(1), numbers(1))), ErrFormat, "w", "ComplexFloatStorage"},
		{"a name twice", pickleOf(dictOf(text("w"), good, text("w"), good)), ErrFormat, "w", "twice"},
		{"a number among tensors", one(integer(3)), ErrFormat, "w", "3"},
		{"a model", pickleOf(global("my.module", "Model") + ")R"), ErrFormat, "", "my.module.Model"},
		{"a list", pickleOf("]"), ErrFormat, "", "dictionary"},
		{"an end that is missing", "\x80\x02}", ErrFormat, "", "ends before"},
		{"nothing on the stack", "\x80\x02.", ErrFormat, "", "empty stack"},
		{"an unknown instruction", "\x80\x02P.", ErrFormat, "", "0x50"},
		{"a text that is longer than the file", "\x80\x02X\xff\xff\xff\x04a.", ErrFormat, "", "ends before"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, err := OpenTorch(torchFile(t, map[string]string{"data.pkl": c.pickle, "data/0": twelve}), "")
			if err == nil {
				f.Close()
				t.Fatal("accepted")
			}
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, c.cause) || e.Tensor != c.tensor || !strings.Contains(err.Error(), c.says) || !strings.Contains(e.File, "model.pt") {
				t.Errorf("error %v: want cause %v, tensor %q, the file, and %q in it", err, c.cause, c.tensor, c.says)
			}
		})
	}
	for _, c := range []struct {
		name, says string
		entries    map[string]string
		deflated   []string
	}{
		{"a compressed storage", "compressed", map[string]string{"data.pkl": one(good), "data/0": twelve}, []string{"data/0"}},
		{"another byte order", "little", map[string]string{"data.pkl": one(good), "data/0": twelve, "byteorder": "big"}, nil},
		{"no pickle", "data.pkl", map[string]string{"data/0": twelve}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := OpenTorch(torchFile(t, c.entries, c.deflated...), ""); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v: want %q in it", err, c.says)
			}
		})
	}
}

func TestNotATorchFile(t *testing.T) {
	for name, c := range map[string]struct{ data, says string }{
		"a bare pickle":   {"\x80\x02}.", "before 1.6"},
		"something else":  {"hello", "neither"},
		"an empty file":   {"", "neither"},
		"a truncated zip": {"PK\x03\x04 and so on", "cut short"},
	} {
		path := filepath.Join(t.TempDir(), "pytorch_model.bin")
		if err := os.WriteFile(path, []byte(c.data), 0o600); err != nil {
			t.Fatal(err)
		}
		var e *Error
		if _, err := Open(filepath.Dir(path)); !errors.As(err, &e) || !strings.Contains(e.Reason, c.says) || e.Hint == "" || e.File != path {
			t.Errorf("%s: error %v: want %q, the file and a hint in it", name, err, c.says)
		}
	}
}

// Shards of PyTorch are planned as shards of safetensors.
func TestTorchShards(t *testing.T) {
	dir := t.TempDir()
	weights := map[string]string{}
	for i, name := range []string{"a", "b"} {
		file := fmt.Sprintf("pytorch_model-%05d-of-00002.bin", i+1)
		from := torchFile(t, map[string]string{"data.pkl": pickleOf(dictOf(text(name), rebuilt("HalfStorage", "0", 12, 0, numbers(12), numbers(1)))), "data/0": twelve})
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, map[string]string{file: string(data)})
		weights[name] = file
	}
	index, err := encodeIndex(weights, 48)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, map[string]string{torchIndexName: string(index)})
	folder, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	plan, err := Like([]Spec{{"a", F16, []int64{12}}, {"b", F16, []int64{12}}}, folder)
	if err != nil || len(plan.Shards) != 2 || plan.Shards[1].Name != "model-00002-of-00002.safetensors" {
		t.Errorf("plan %+v, %v", plan, err)
	}
}

func FuzzUnpickle(f *testing.F) {
	f.Add([]byte(pickleOf(dictOf(text("w"), rebuilt("HalfStorage", "0", 12, 0, numbers(3, 4), numbers(4, 1))))))
	f.Add([]byte("\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94]\x94(K\x01G?\xf0\x00\x00\x00\x00\x00\x00e s."))
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := unpickle(bytes.NewReader(data))
		if err == nil {
			_ = kindOf(root)
		}
	})
}
