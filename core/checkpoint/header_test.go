package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// raw is a file with this header text and so many bytes of data.
func raw(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func read(file []byte) (*header, error) {
	return readHeader(bytes.NewReader(file), int64(len(file)))
}

func TestHeaderRules(t *testing.T) {
	const one = `"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}`
	huge := binary.LittleEndian.AppendUint64(nil, math.MaxUint64)
	cases := []struct {
		name   string
		file   []byte
		reason string // "" when the file is right
	}{
		{"one tensor", raw(`{`+one+`}`, 4), ""},
		{"no tensor", raw(`{}`, 0), ""},
		{"padded with spaces", raw(`{`+one+`}    `, 4), ""},
		{"white space between tokens", raw("{ \"a\" :\t{\"shape\":[ 1 ],\n\"dtype\":\"F32\",\"data_offsets\":[0 , 4]} }", 4), ""},
		{"escaped name", raw(`{"\u0061\ud83d\ude00\n":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}`, 1), ""},
		{"metadata", raw(`{"__metadata__":{"k":"v"},`+one+`}`, 4), ""},
		{"any order", raw(`{"b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]},`+one+`}`, 5), ""},
		{"empty tensors share an offset", raw(`{"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"c":{"dtype":"U8","shape":[2,0],"data_offsets":[0,0]},`+one+`}`, 4), ""},
		{"packed type", raw(`{"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}}`, 3), ""},

		{"shorter than its length", []byte("1234567"), "7 bytes"},
		{"length over the limit", append(huge, '{', '}'), "allows 100000000"},
		{"header past the end", raw(`{}`, 0)[:9], "claims 2 bytes"},
		{"not UTF-8", raw("{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "UTF-8"},
		{"leading space", raw(` {}`, 0), "begin with {"},
		{"tab as padding", raw("{}\t", 0), "closing }"},
		{"two objects", raw("{}{}", 0), "closing }"},
		{"unfinished", raw(`{"a"`, 0), "want ':'"},
		{"trailing comma", raw(`{`+one+`,}`, 4), `want '"'`},
		{"duplicate tensor", raw(`{`+one+`,`+one+`}`, 4), "duplicate key"},
		{"duplicate tensor, spelled otherwise", raw(`{`+one+`,`+strings.Replace(one, "a", `\u0061`, 1)+`}`, 4), "duplicate key"},
		{"duplicate metadata", raw(`{"__metadata__":{},"__metadata__":{}}`, 0), "duplicate key"},
		{"duplicate metadata key", raw(`{"__metadata__":{"k":"v","k":"v"}}`, 0), "duplicate key"},
		{"duplicate field", raw(`{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4), "duplicate key"},
		{"metadata not of strings", raw(`{"__metadata__":{"k":1}}`, 0), `want '"'`},
		{"metadata null", raw(`{"__metadata__":null}`, 0), "want '{'"},
		{"tensor as an array", raw(`{"a":["F32",[1],[0,4]]}`, 4), "want '{'"},
		{"unknown field", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}`, 4), "unknown key"},
		{"missing shape", raw(`{"a":{"dtype":"F32","data_offsets":[0,4]}}`, 4), "a shape"},
		{"three offsets", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}`, 4), "two data_offsets"},
		{"unknown dtype", raw(`{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}`, 4), `"F31"`},
		{"dtype in lower case", raw(`{"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}`, 4), `"f32"`},
		{"lone surrogate", raw(`{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "surrogate"},
		{"surrogates the wrong way round", raw(`{"\udc00\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "surrogate"},
		{"control character", raw("{\"\n\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "control character"},
		{"unknown escape", raw(`{"\x":{}}`, 0), "unknown escape"},
		{"negative axis", raw(`{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}`, 4), "whole number"},
		{"fraction", raw(`{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}`, 4), "want ']'"},
		{"leading zero", raw(`{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}`, 4), "whole number"},
		{"number over 2^63", raw(`{"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}}`, 4), "whole number"},
		{"overflowing shape", raw(`{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}`, 0), "no size"},
		{"overflow before a zero", raw(`{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}`, 0), "no size"},
		{"overflow in bits", raw(`{"a":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,0]}}`, 0), "no size"},
		{"half a byte", raw(`{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}`, 2), "whole bytes"},
		{"overlap", raw(`{"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]},`+one+`}`, 6), "overlap"},
		{"the same span twice", raw(`{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},`+one+`}`, 4), "overlap"},
		{"hole", raw(`{"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]},`+one+`}`, 6), "hole"},
		{"hole at the beginning", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}`, 5), "hole"},
		{"reversed offsets", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}}`, 4), "span"},
		{"span too long", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}`, 5), "span"},
		{"truncated data", raw(`{`+one+`}`, 3), "ends at byte 4 of the data, the file has 3"},
		{"bytes after the data", raw(`{`+one+`}`, 5), "1 bytes after"},
		{"bytes after no data", raw(`{}`, 1), "1 bytes after"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := read(c.file)
			if c.reason == "" {
				if err != nil {
					t.Fatalf("got %v, want a header", err)
				}
				return
			}
			wantError(t, err, nil, c.reason)
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrTruncated) {
				t.Errorf("the cause of %v is neither ErrFormat nor ErrTruncated", err)
			}
		})
	}
}

func TestErrorsNameFileAndTensor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weights.safetensors")
	for _, c := range []struct {
		name   string
		header string
		data   int
	}{
		{"in the header", `{"good":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"bad":{"dtype":"U9","shape":[1],"data_offsets":[1,2]}}`, 2},
		{"in the spans", `{"good":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"bad":{"dtype":"U8","shape":[1],"data_offsets":[1,3]}}`, 3},
		{"in the data", `{"good":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"bad":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, raw(c.header, c.data), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := OpenFile(path)
			wantError(t, err, nil, path)
			var e *Error
			if errors.As(err, &e); e.File != path || e.Tensor != "bad" {
				t.Errorf("the error blames file %q, tensor %q: want %q, bad", e.File, e.Tensor, path)
			}
		})
	}
}

func TestOnlyRegularFiles(t *testing.T) {
	_, err := OpenFile(t.TempDir())
	wantError(t, err, ErrFormat, "not a regular file")
	_, err = OpenFile(filepath.Join(t.TempDir(), "absent.safetensors"))
	wantError(t, err, os.ErrNotExist, "absent.safetensors")
}

// FuzzHeader wants every accepted file to be tiled by its tensors, and to say the
// same after encoding.
func FuzzHeader(f *testing.F) {
	for _, header := range []string{
		`{}`, `{"__metadata__":{"k":"v"}}`, `{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`,
		`{"a":{"dtype":"F4","shape":[2,1],"data_offsets":[0,1]},"\ud83d\ude00":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}`,
	} {
		f.Add([]byte(header), 4)
		f.Add([]byte(header), 0)
	}
	for _, header := range []string{ // a hole, an overlap, a wrong size
		`{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}`,
		`{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}`,
		`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`,
	} {
		f.Add([]byte(header), 4)
	}
	f.Fuzz(func(t *testing.T, text []byte, data int) {
		if data < 0 || data > 1<<16 {
			return
		}
		h, err := read(raw(string(text), data))
		if err != nil {
			return
		}
		next := int64(0)
		for _, e := range h.entries {
			if size, ok := byteSize(e.dtype, e.shape); !ok || e.begin != next || e.end != next+size {
				t.Fatalf("%+v does not begin at %d", e, next)
			}
			next = e.end
		}
		if next != int64(data) {
			t.Fatalf("the tensors end at %d of %d bytes", next, data)
		}
		head, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := read(append(head, make([]byte, data)...))
		if err != nil {
			t.Fatalf("encoded as %s: %v", head, err)
		}
		if twice, _ := again.encode(); !bytes.Equal(head, twice) {
			t.Fatalf("encoded as %s, then %s", head, twice)
		}
	})
}
