package checkpoint

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
)

// python runs a script of testdata, or skips the test where the interpreter
// (TRIVIUM_PYTHON, else python3) has not the modules.
func python(t *testing.T, modules string, args ...string) *exec.Cmd {
	t.Helper()
	exe := os.Getenv("TRIVIUM_PYTHON")
	if exe == "" {
		exe = "python3"
	}
	if out, err := exec.Command(exe, "-c", "import "+modules).CombinedOutput(); err != nil {
		t.Skipf("%s cannot import %s: %v %s", exe, modules, err, out)
	}
	cmd := exec.Command(exe, args...)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestAgainstTheReferenceReader mutates valid files. None may be accepted here that
// the Python reader refuses, and a file that both accept must say the same to both.
// TRIVIUM_DIFFERENTIAL sets the number of files.
func TestAgainstTheReferenceReader(t *testing.T) {
	count := 500
	if s := os.Getenv("TRIVIUM_DIFFERENTIAL"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	cmd := python(t, "safetensors", filepath.Join("testdata", "reader.py"))
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	lines := bufio.NewReader(out)
	answer := func() string {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the reference reader died: %v", err)
		}
		return strings.TrimSpace(line)
	}
	const seed = 7
	t.Logf("seed %d, %d files, reference %s", seed, count, answer())

	rng := rand.New(rand.NewPCG(seed, 0))
	both, stricter, refused := 0, map[string]int{}, 0
	for i := range count {
		file := mutate(rng, validFile(t, rng))
		in.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(file))))
		in.Write(file)
		theirs := answer()
		h, err := read(file)
		switch {
		case err == nil && theirs == "null":
			t.Fatalf("file %d is accepted here and refused by the reference: %q", i, file)
		case err == nil:
			both++
			if ours := describe(t, h, file); !sameJSON(t, ours, theirs) {
				t.Fatalf("file %d: here %s, reference %s", i, ours, theirs)
			}
		case theirs == "null":
			refused++
		default:
			stricter[regexp.MustCompile(`\d+|"(\\.|[^"])*"`).ReplaceAllString(err.Error(), "_")]++
		}
	}
	t.Logf("accepted by both %d, refused by both %d, refused here only: %v", both, refused, stricter)
	if both < count/20 || refused < count/20 {
		t.Errorf("accepted by both %d, refused by both %d of %d: the mutations are one-sided", both, refused, count)
	}
}

func describe(t *testing.T, h *header, file []byte) string {
	t.Helper()
	rows := [][]any{}
	for _, e := range h.entries {
		rows = append(rows, []any{e.name, e.dtype, e.shape, crc32.ChecksumIEEE(file[h.data+e.begin : h.data+e.end])})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i][0].(string) < rows[j][0].(string) })
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sameJSON compares values: the two sides escape and space differently.
func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

func validFile(t *testing.T, rng *rand.Rand) []byte {
	t.Helper()
	var specs []Spec
	for i := range 1 + rng.IntN(4) {
		shape := []int64{}
		for range rng.IntN(3) {
			shape = append(shape, rng.Int64N(4))
		}
		specs = append(specs, Spec{fmt.Sprintf("t%d", i), dtypes[rng.IntN(len(dtypes))].dtype, append(shape, 4)})
	}
	s := mustSplit(t, specs, 0).Shards[0]
	file := make([]byte, s.Size)
	for i := range file {
		file[i] = byte(rng.Uint32())
	}
	copy(file, s.head)
	return file
}

var (
	number = regexp.MustCompile(`\d+`)
	tokens = []string{`{`, `}`, `[`, `]`, `,`, `:`, `"`, ` `, "\t", "\n", "\x00", "\xff", `\u0061`, `\ud800`, `null`, `true`, `-1`, `1e0`, `1.0`, `00`,
		`"__metadata__":{},`, `"x":1,`, `"dtype":"U8",`, `"shape":[1],`, `"t0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},`, "{}", "é"}
)

// mutate changes a file in one to three places, mostly in the header's text.
func mutate(rng *rand.Rand, file []byte) []byte {
	n := binary.LittleEndian.Uint64(file)
	text, data := string(file[lengthBytes:lengthBytes+n]), file[lengthBytes+n:]
	length := int64(0) // added to the true length of the header
	for range 1 + rng.IntN(3) {
		at, end := rng.IntN(len(text)+1), 0
		end = min(len(text), at+rng.IntN(12))
		switch rng.IntN(10) {
		case 0: // a token somewhere
			text = text[:at] + tokens[rng.IntN(len(tokens))] + text[at:]
		case 1: // a span gone
			text = text[:at] + text[end:]
		case 2: // a span twice
			text = text[:end] + text[at:]
		case 3: // a byte changed
			if at < len(text) {
				text = text[:at] + string([]byte{byte(rng.Uint32())}) + text[at+1:]
			}
		case 4, 5: // a number changed
			if found := number.FindAllStringIndex(text, -1); found != nil {
				f := found[rng.IntN(len(found))]
				value, _ := strconv.ParseUint(text[f[0]:f[1]], 10, 64)
				value += []uint64{1, 4, 1 << 32, 1 << 62, 1 << 63, ^uint64(0)}[rng.IntN(6)]
				text = text[:f[0]] + strconv.FormatUint(value, 10) + text[f[1]:]
			}
		case 6: // another dtype, perhaps as wide
			text = strings.Replace(text, string(dtypes[rng.IntN(len(dtypes))].dtype), string(dtypes[rng.IntN(len(dtypes))].dtype), 1)
		case 7: // a name escaped, or the name of another
			text = strings.Replace(text, `"t1"`, []string{`"\u0074\u0031"`, `"t0"`, `"\ud83d\ude00"`, `""`}[rng.IntN(4)], 1)
		case 8: // padding
			text += strings.Repeat(" ", rng.IntN(3))
		case 9:
			switch rng.IntN(3) {
			case 0:
				length = rng.Int64N(5) - 2
			case 1:
				data = data[:rng.IntN(len(data)+1)]
			case 2:
				data = append(data, byte(rng.Uint32()))
			}
		}
	}
	out := binary.LittleEndian.AppendUint64(nil, uint64(int64(len(text))+length))
	return append(append(out, text...), data...)
}

// TestSameBytesAsTheReferenceWriter reads and writes our file with the reference library.
func TestSameBytesAsTheReferenceWriter(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, singleName), filepath.Join(dir, "theirs")
	var specs []Spec
	for i, d := range []Dtype{BOOL, U8, I8, F8_E5M2, F8_E4M3, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64} {
		specs = append(specs, Spec{fmt.Sprintf("layer.%d.é\"\\\t", 20-i), d, []int64{int64(i), 3}}, Spec{fmt.Sprintf("scalar.%d", i), d, []int64{}})
	}
	w, err := Create(mustSplit(t, specs, 0), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, tensor := range w.Tensors() {
		if tensor.Dtype != BOOL { // a bool may only be 0 or 1
			fill(t, tensor, 1)
		}
		if err := w.Done(tensor); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	cmd := python(t, "safetensors.torch", filepath.Join("testdata", "rewrite.py"), ours, theirs)
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		n := min(len(a), len(b), 3000)
		t.Errorf("the files differ:\n%q\n%q", a[:n], b[:n])
	}
}
