package host

import (
	"encoding/json"
	"strings"
	"sync"
)

const (
	tailLines    = 12
	tailLineSize = 400
)

// stderrTail keeps the last lines a plugin process printed, to say why it died.
// Its structured log lines are kept from warnings on, without their envelope.
type stderrTail struct {
	mu      sync.Mutex
	lines   []string
	dying   bool // the Go runtime is printing why: its first lines say most
	partial strings.Builder
}

func (t *stderrTail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range strings.Lines(string(b)) {
		if t.partial.Len() < 64<<10 {
			t.partial.WriteString(line)
		}
		if strings.HasSuffix(line, "\n") {
			t.add(strings.TrimSpace(t.partial.String()))
			t.partial.Reset()
		}
	}
	return len(b), nil
}

func (t *stderrTail) add(line string) {
	line = withoutEnvelope(line)
	if line == "" {
		return
	}
	if len(line) > tailLineSize {
		line = strings.ToValidUTF8(line[:tailLineSize], "") + " ..."
	}
	if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
		t.dying, t.lines = true, nil
	}
	if len(t.lines) < tailLines {
		t.lines = append(t.lines, line)
	} else if !t.dying {
		t.lines = append(t.lines[1:], line)
	}
}

// withoutEnvelope is the message of a structured log line, or nothing for one below warning.
func withoutEnvelope(line string) string {
	if !strings.HasPrefix(line, "{") {
		return line
	}
	var entry struct {
		Level   string `json:"@level"`
		Message string `json:"@message"`
	}
	if json.Unmarshal([]byte(line), &entry) != nil || entry.Level == "" {
		return line
	}
	if entry.Level != "warn" && entry.Level != "error" {
		return ""
	}
	return entry.Message
}

// String is the tail, one line each.
func (t *stderrTail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}
