package checkpoint

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
)

// encode writes the header as the reference writer does, so equal tensors give
// equal files: no white space, metadata first, padded to 8 bytes.
func (h *header) encode() ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, lengthBytes))
	b.WriteByte('{')
	if h.metadata != nil {
		fmt.Fprintf(&b, "%s:%s", quote(metadataKey), quote(h.metadata))
	}
	for _, e := range h.entries {
		if b.Len() > lengthBytes+1 {
			b.WriteByte(',')
		}
		shape := strings.ReplaceAll(fmt.Sprint(e.shape), " ", ",")
		fmt.Fprintf(&b, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, quote(e.name), e.dtype, shape, e.begin, e.end)
	}
	b.WriteByte('}')
	for b.Len()%lengthBytes != 0 {
		b.WriteByte(' ')
	}
	n := b.Len() - lengthBytes
	if n > maxHeader {
		return nil, &Error{Op: "plan", Reason: fmt.Sprintf("the header needs %d bytes, the format allows %d", n, maxHeader), Hint: "use smaller shards"}
	}
	binary.LittleEndian.PutUint64(b.Bytes(), uint64(n))
	return b.Bytes(), nil
}

// quote is JSON without the escapes meant for web pages. v has come from JSON, so it
// encodes.
func quote(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}
