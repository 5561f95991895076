package promise

// Room is memory for one head at a time, kept from one to the next: what Find
// returns lies in it until it is given to another head.
type Room struct {
	numbers memory[float32]
	levels  memory[uint8]
}

type memory[T any] struct {
	values []T
	used   int
}

// take gives n cleared values; where there are too few left, of their own.
func (m *memory[T]) take(n int) []T {
	m.used += n
	if m.used > len(m.values) {
		return make([]T, n)
	}
	part := m.values[m.used-n : m.used : m.used]
	clear(part)
	return part
}

// empty lets all be taken anew, and as much as was taken last.
func (m *memory[T]) empty() {
	if m.used > len(m.values) {
		m.values = make([]T, m.used)
	}
	m.used = 0
}

func (h *Head) room() *Room {
	if h.Room == nil {
		h.Room = &Room{}
	}
	return h.Room
}

func (h *Head) floats(n int) []float32 { return h.room().numbers.take(n) }
func (h *Head) bytes(n int) []uint8    { return h.room().levels.take(n) }
