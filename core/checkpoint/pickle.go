package checkpoint

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// unpickle reads a pickle as data. It never calls or imports anything: a global
// is its name, calling one is a record of the call, and what the caller does not
// know stays such a record. Memory is bounded by the length of the stream.
func unpickle(r io.Reader) (any, error) { return unpickleOf(r, nil) }

// unpickleOf also refuses a global that is not among the known; nil: none is.
func unpickleOf(r io.Reader, known func(pickledGlobal) bool) (any, error) {
	m := &machine{in: bufio.NewReader(r), memo: map[uint32]any{}, known: known}
	for {
		op, err := m.in.ReadByte()
		if err == nil && op == '.' {
			return m.pop()
		}
		if err == nil {
			err = m.step(op)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("the pickle ends before its last instruction")
		}
		if err != nil {
			return nil, err
		}
	}
}

// What a pickle is made of, besides string, int64, float64, bool, nil and []byte.
type (
	pickledGlobal string // "module name"
	pickledTuple  []any
	pickledList   struct{ items []any }
	pickledDict   struct {
		keys   []any
		values []any
	}
	pickledCall struct { // of a global, or an object with a state
		of    any
		args  pickledTuple
		state any
	}
	pickledID struct{ id any } // an object that lies outside of the pickle
	mark      struct{}
)

type machine struct {
	in    *bufio.Reader
	stack []any
	memo  map[uint32]any
	known func(pickledGlobal) bool
}

// unknownGlobal is a global that has no place in the file at hand.
type unknownGlobal struct{ name pickledGlobal }

func (u *unknownGlobal) Error() string {
	return "the pickle names " + kindOf(u.name) + ", which is not known here"
}

func (m *machine) push(x any) error {
	m.stack = append(m.stack, x)
	return nil
}

func (m *machine) pop() (any, error) {
	if len(m.stack) == 0 {
		return nil, errors.New("the pickle takes from an empty stack")
	}
	x := m.stack[len(m.stack)-1]
	m.stack = m.stack[:len(m.stack)-1]
	return x, nil
}

// popMark takes all down to the last mark.
func (m *machine) popMark() ([]any, error) {
	for i := len(m.stack) - 1; i >= 0; i-- {
		if _, ok := m.stack[i].(mark); ok {
			items := append([]any(nil), m.stack[i+1:]...)
			m.stack = m.stack[:i]
			return items, nil
		}
	}
	return nil, errors.New("the pickle takes down to a mark that is not there")
}

// step runs one instruction. The opcodes are those of protocols 2 to 5 that
// dictionaries of tensors are written with; others are refused.
func (m *machine) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		_, err := m.bytes(1)
		return err
	case 0x95: // FRAME
		_, err := m.bytes(8)
		return err
	case '(':
		return m.push(mark{})
	case 'N':
		return m.push(nil)
	case 0x88, 0x89: // NEWTRUE, NEWFALSE
		return m.push(op == 0x88)
	case ')':
		return m.push(pickledTuple{})
	case ']':
		return m.push(&pickledList{})
	case '}':
		return m.push(&pickledDict{})
	case 'K', 'M', 'J', 0x8a, 'G':
		return m.number(op)
	case 'X', 0x8c, 0x8d, 'U', 'T', 'C', 'B':
		return m.text(op)
	case 'c', 0x93:
		return m.global(op)
	case 'q', 'r', 0x94, 'h', 'j':
		return m.memory(op)
	case '0':
		_, err := m.pop()
		return err
	case 't', 0x85, 0x86, 0x87:
		return m.tuple(op)
	case 's', 'u', 'a', 'e', 'b':
		return m.fill(op)
	case 'R', 0x81, 'Q':
		return m.call(op)
	}
	return fmt.Errorf("the pickle has the instruction %#x, which a dictionary of tensors has not", op)
}

// bytes reads n of the stream, in pieces, so that a lie about n costs nothing.
func (m *machine) bytes(n uint64) ([]byte, error) {
	if n > maxHeader {
		return nil, fmt.Errorf("the pickle has a text of %d bytes: want at most %d", n, maxHeader)
	}
	var b strings.Builder
	_, err := io.CopyN(&b, m.in, int64(n))
	return []byte(b.String()), err
}

func (m *machine) unsigned(size uint64) (uint64, error) {
	b, err := m.bytes(size)
	var all [8]byte
	copy(all[:], b)
	return binary.LittleEndian.Uint64(all[:]), err
}

func (m *machine) number(op byte) error {
	size := map[byte]uint64{'K': 1, 'M': 2, 'J': 4, 'G': 8}[op]
	if op == 0x8a { // LONG1
		n, err := m.unsigned(1)
		if err != nil || n > 8 {
			return errors.Join(err, fmt.Errorf("the pickle has an integer of %d bytes: want at most 8", n))
		}
		size = n
	}
	x, err := m.unsigned(size)
	if err != nil {
		return err
	}
	switch {
	case op == 'J':
		return m.push(int64(int32(uint32(x))))
	case op == 'G':
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], x)
		return m.push(math.Float64frombits(binary.BigEndian.Uint64(b[:])))
	case op == 0x8a && size > 0 && size < 8: // a sign to spread
		shift := 64 - 8*size
		return m.push(int64(x<<shift) >> shift)
	}
	return m.push(int64(x))
}

func (m *machine) text(op byte) error {
	size := map[byte]uint64{'X': 4, 0x8c: 1, 0x8d: 8, 'U': 1, 'T': 4, 'C': 1, 'B': 4}[op]
	n, err := m.unsigned(size)
	if err != nil {
		return err
	}
	b, err := m.bytes(n)
	if err != nil {
		return err
	}
	if op == 'C' || op == 'B' {
		return m.push(b)
	}
	if !utf8.Valid(b) {
		return errors.New("the pickle has a text that is not UTF-8")
	}
	return m.push(string(b))
}

func (m *machine) global(op byte) error {
	if op == 'c' {
		module, err := m.in.ReadString('\n')
		if err != nil {
			return err
		}
		name, err := m.in.ReadString('\n')
		if err != nil {
			return err
		}
		return m.pushGlobal(strings.TrimSuffix(module, "\n"), strings.TrimSuffix(name, "\n"))
	}
	name, err := m.pop()
	if err != nil {
		return err
	}
	module, err := m.pop()
	if err != nil {
		return err
	}
	a, isText := module.(string)
	b, isName := name.(string)
	if !isText || !isName {
		return errors.New("the pickle names a global by something other than texts")
	}
	return m.pushGlobal(a, b)
}

func (m *machine) pushGlobal(module, name string) error {
	g := pickledGlobal(module + " " + name)
	if m.known != nil && !m.known(g) {
		return &unknownGlobal{g}
	}
	return m.push(g)
}

func (m *machine) memory(op byte) error {
	at := uint64(len(m.memo)) // MEMOIZE
	if size := map[byte]uint64{'q': 1, 'h': 1, 'r': 4, 'j': 4}[op]; size > 0 {
		var err error
		if at, err = m.unsigned(size); err != nil {
			return err
		}
	}
	if op == 'h' || op == 'j' {
		x, ok := m.memo[uint32(at)]
		if !ok {
			return fmt.Errorf("the pickle recalls number %d, which it has not stored", at)
		}
		return m.push(x)
	}
	if len(m.stack) == 0 {
		return errors.New("the pickle stores from an empty stack")
	}
	m.memo[uint32(at)] = m.stack[len(m.stack)-1]
	return nil
}

func (m *machine) tuple(op byte) error {
	if op == 't' {
		items, err := m.popMark()
		if err != nil {
			return err
		}
		return m.push(pickledTuple(items))
	}
	n := int(op) - 0x84
	if len(m.stack) < n {
		return errors.New("the pickle makes a tuple of more than there is")
	}
	items := append(pickledTuple(nil), m.stack[len(m.stack)-n:]...)
	m.stack = m.stack[:len(m.stack)-n]
	return m.push(items)
}

// fill puts items into the list, dictionary or object below them.
func (m *machine) fill(op byte) error {
	var items []any
	var err error
	if op == 'u' || op == 'e' {
		items, err = m.popMark()
	} else {
		for range map[byte]int{'s': 2, 'a': 1, 'b': 1}[op] {
			var x any
			if x, err = m.pop(); err != nil {
				return err
			}
			items = append([]any{x}, items...)
		}
	}
	if err != nil {
		return err
	}
	if len(m.stack) == 0 {
		return errors.New("the pickle fills what is not there")
	}
	switch to := m.stack[len(m.stack)-1].(type) {
	case *pickledList:
		to.items = append(to.items, items...)
	case *pickledDict:
		for i := 0; op != 'b' && i+1 < len(items); i += 2 { // a state is attributes, such as _metadata
			to.keys, to.values = append(to.keys, items[i]), append(to.values, items[i+1])
		}
	case *pickledCall:
		if op == 'b' { // items of an object are not asked for
			to.state = items[0]
		}
	default:
		return fmt.Errorf("the pickle fills a %T", to)
	}
	return nil
}

func (m *machine) call(op byte) error {
	args, err := m.pop()
	if err != nil {
		return err
	}
	if op == 'Q' {
		return m.push(pickledID{args})
	}
	of, err := m.pop()
	if err != nil {
		return err
	}
	list, ok := args.(pickledTuple)
	if !ok {
		return fmt.Errorf("the pickle calls %s with %s: want a tuple", kindOf(of), kindOf(args))
	}
	if of == pickledGlobal("collections OrderedDict") && len(list) == 0 {
		return m.push(&pickledDict{})
	}
	return m.push(&pickledCall{of: of, args: list})
}

// kindOf says what a value is, for messages. It does not look into values,
// which may be deep.
func kindOf(x any) string {
	switch x := x.(type) {
	case *pickledCall:
		if name, ok := x.of.(pickledGlobal); ok {
			return "an object made by " + kindOf(name)
		}
		return "an object"
	case []byte:
		return fmt.Sprintf("%d bytes", len(x))
	case pickledGlobal:
		return strings.ReplaceAll(string(x), " ", ".")
	case *pickledDict:
		return "a dictionary"
	case *pickledList, pickledTuple:
		return "a list"
	case nil:
		return "None"
	case string:
		return "the text " + strconv.Quote(x[:min(len(x), 40)])
	case pickledID:
		return "a storage"
	}
	return fmt.Sprintf("%T %v", x, x)
}
