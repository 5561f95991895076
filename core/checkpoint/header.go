package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"unicode/utf8"
)

// A safetensors file is: the header's length (8 bytes, little-endian), the header
// (JSON, padded with spaces), the tensors' bytes without holes. Format:
// https://huggingface.co/docs/safetensors.
const (
	lengthBytes = 8
	maxHeader   = 100_000_000
	metadataKey = "__metadata__"
)

// entry is one tensor of a header; begin and end count from the end of the header.
type entry struct {
	name       string
	dtype      Dtype
	shape      []int64
	begin, end int64
}

type header struct {
	metadata map[string]string
	entries  []entry // by begin
	data     int64   // where the tensors' bytes begin in the file
}

func malformed(tensor, format string, args ...any) *Error {
	return &Error{Op: "read", Tensor: tensor, Reason: fmt.Sprintf(format, args...), Err: ErrFormat}
}

// readHeader checks every rule of the format that can be checked without reading
// the tensors. size is the length of the file.
func readHeader(file io.ReaderAt, size int64) (*header, error) {
	var length [lengthBytes]byte
	if size < lengthBytes {
		return nil, &Error{Op: "read", Reason: fmt.Sprintf("the file has %d bytes, a safetensors file at least %d", size, lengthBytes), Err: ErrTruncated}
	}
	if _, err := file.ReadAt(length[:], 0); err != nil {
		return nil, system("read", "", err)
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > maxHeader {
		return nil, malformed("", "the header claims %d bytes, the format allows %d: not a safetensors file?", n, maxHeader)
	}
	if int64(n) > size-lengthBytes {
		return nil, &Error{Op: "read", Reason: fmt.Sprintf("the header claims %d bytes, the file has %d after its length", n, size-lengthBytes), Err: ErrTruncated}
	}
	text := make([]byte, n)
	if _, err := file.ReadAt(text, lengthBytes); err != nil {
		return nil, system("read", "", err)
	}
	h := &header{data: lengthBytes + int64(n)}
	if err := h.parse(text); err != nil {
		return nil, err
	}
	return h, h.checkSpans(size - h.data)
}

func (h *header) parse(text []byte) error {
	if !utf8.Valid(text) {
		return malformed("", "the header is not UTF-8")
	}
	if !bytes.HasPrefix(text, []byte("{")) {
		return malformed("", "the header does not begin with {")
	}
	s := &scanner{text: bytes.TrimRight(text, " ")}
	var tensor string // the one being read, for the error
	err := s.object(func(key string) error {
		if key == metadataKey {
			return h.parseMetadata(s)
		}
		tensor = key
		e, err := parseEntry(s, key)
		if err == nil {
			h.entries, tensor = append(h.entries, e), ""
		}
		return err
	})
	if err == nil && s.pos != len(s.text) {
		err = s.errorf("text after the header's closing }")
	}
	if err != nil {
		return malformed(tensor, "header, %v", err)
	}
	return nil
}

func (h *header) parseMetadata(s *scanner) error {
	h.metadata = map[string]string{}
	return s.object(func(key string) (err error) {
		h.metadata[key], err = s.string()
		return err
	})
}

func parseEntry(s *scanner, name string) (entry, error) {
	e := entry{name: name}
	var offsets []int64
	err := s.object(func(key string) (err error) {
		switch key {
		case "dtype":
			var d string
			d, err = s.string()
			e.dtype = Dtype(d)
		case "shape":
			e.shape, err = s.sizes()
		case "data_offsets":
			offsets, err = s.sizes()
		default:
			err = s.errorf("unknown key %q: want dtype, shape, data_offsets", key)
		}
		return err
	})
	if err != nil {
		return e, err
	}
	if !e.dtype.Valid() || e.shape == nil || len(offsets) != 2 {
		return e, s.errorf("want a known dtype (have %q), a shape and two data_offsets (have %d)", e.dtype, len(offsets))
	}
	e.begin, e.end = offsets[0], offsets[1]
	return e, nil
}

// checkSpans wants the tensors to tile the data exactly.
func (h *header) checkSpans(data int64) error {
	sort.Slice(h.entries, func(i, j int) bool {
		a, b := h.entries[i], h.entries[j]
		if a.begin != b.begin {
			return a.begin < b.begin
		}
		if a.end != b.end {
			return a.end < b.end
		}
		return a.name < b.name
	})
	next := int64(0)
	for _, e := range h.entries {
		size, ok := byteSize(e.dtype, e.shape)
		switch {
		case !ok:
			return malformed(e.name, "shape %v of %s has no size in whole bytes below 2^61", e.shape, e.dtype)
		case e.begin < next:
			return malformed(e.name, "data_offsets [%d, %d] overlap the tensor before, which ends at %d", e.begin, e.end, next)
		case e.begin > next:
			return malformed(e.name, "data_offsets [%d, %d] leave a hole after %d", e.begin, e.end, next)
		case e.end < e.begin || e.end-e.begin != size:
			return malformed(e.name, "data_offsets [%d, %d] do not span the %d bytes of %s %v", e.begin, e.end, size, e.dtype, e.shape)
		case e.end > data:
			return &Error{Op: "read", Tensor: e.name, Err: ErrTruncated, Hint: "copy or download the file again",
				Reason: fmt.Sprintf("truncated: the tensor ends at byte %d of the data, the file has %d", e.end, data)}
		}
		next = e.end
	}
	if next != data {
		return malformed("", "%d bytes after the last tensor", data-next)
	}
	return nil
}
