package checkpoint

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
)

// scanner reads JSON strictly: duplicate keys, lone surrogates and raw control
// characters are errors, which encoding/json lets pass. The text must be valid
// UTF-8 already.
type scanner struct {
	text []byte
	pos  int
}

func (s *scanner) errorf(format string, args ...any) error {
	return fmt.Errorf("byte %d: %s", s.pos, fmt.Sprintf(format, args...))
}

// peek skips white space and returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	for ; s.pos < len(s.text); s.pos++ {
		switch s.text[s.pos] {
		case ' ', '\t', '\n', '\r':
		default:
			return s.text[s.pos]
		}
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	if got := s.peek(); got != c || s.pos == len(s.text) {
		return s.errorf("want %q", c)
	}
	s.pos++
	return nil
}

// object calls member at each value, with the value's key.
func (s *scanner) object(member func(key string) error) error {
	seen := map[string]struct{}{}
	return s.list('{', '}', func() error {
		s.peek()
		key, err := s.string()
		if err != nil {
			return err
		}
		if _, dup := seen[key]; dup {
			return s.errorf("duplicate key %q", key)
		}
		seen[key] = struct{}{}
		if err := s.expect(':'); err != nil {
			return err
		}
		return member(key)
	})
}

// list calls item at each element between the brackets.
func (s *scanner) list(begin, end byte, item func() error) error {
	if err := s.expect(begin); err != nil {
		return err
	}
	if s.peek() == end {
		s.pos++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		if s.peek() != ',' {
			return s.expect(end)
		}
		s.pos++
	}
}

// size reads a whole number in [0, 2^63): plain digits, no sign, no exponent.
func (s *scanner) size() (int64, error) {
	s.peek()
	begin := s.pos
	for s.pos < len(s.text) && '0' <= s.text[s.pos] && s.text[s.pos] <= '9' {
		s.pos++
	}
	digits := string(s.text[begin:s.pos])
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > math.MaxInt64 || (len(digits) > 1 && digits[0] == '0') {
		return 0, s.errorf("want a whole number below 2^63")
	}
	return int64(n), nil
}

// sizes reads an array of whole numbers.
func (s *scanner) sizes() ([]int64, error) {
	out := []int64{}
	err := s.list('[', ']', func() error {
		n, err := s.size()
		out = append(out, n)
		return err
	})
	return out, err
}

// skip passes over one value of a text that json.Valid has accepted.
func (s *scanner) skip() error {
	switch s.peek() {
	case '{':
		return s.object(func(string) error { return s.skip() })
	case '[':
		return s.list('[', ']', s.skip)
	case '"':
		_, err := s.string()
		return err
	}
	for s.pos < len(s.text) && !bytes.ContainsRune([]byte(",]} \t\r\n"), rune(s.text[s.pos])) {
		s.pos++
	}
	return nil
}
